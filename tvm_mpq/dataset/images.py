"""Samples from a folder of images with a labels.csv; decoded when asked for, a batch at a time."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tvm_mpq.dataset.labels import check_labels
from tvm_mpq.dataset.normalization import Normalization, channel_axis
from tvm_mpq.errors import MpqError
from tvm_mpq.tensor_spec import TensorSpec

# What Pillow's decoders raise on damaged files, over and above OSError (which covers "not an image").
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError)


class ImageSource:
    """Images of a folder: RGB (or grayscale for one channel), the whole image resized bicubically.

    Headers are checked when the folder is opened; pixels are decoded by :meth:`read` and not kept.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Sequence[TensorSpec],
        normalization: Normalization,
        resize: int | None,
        classes: int | None,
    ) -> None:
        self._spec, self._axis = _image_input(inputs)
        self._normalization = normalization
        normalization.check_channels(self._spec.shape[self._axis])
        if self._spec.dtype == "uint8" and not normalization.is_identity:
            raise MpqError(f"input {self._spec.name!r} takes uint8 pixels: leave out --mean and --scale")
        _, *sizes = (n for axis, n in enumerate(self._spec.shape) if axis != self._axis)
        self._height, self._width = sizes
        self._resize = resize
        if resize is not None and (resize, resize) != (self._height, self._width):
            raise MpqError(
                f"--resize {resize} does not fit input {self._spec.name!r}, which takes "
                f"{self._height}x{self._width} images"
            )
        self._files, labels = _read_table(folder, classes)
        self.size = len(self._files)
        self.labels = (
            None if labels is None else check_labels(labels, self.size, classes, str(folder / "labels.csv"))
        )
        for file in self._files:
            self._check_header(file)

    def read(self, indices: npt.NDArray[np.intp]) -> dict[str, npt.NDArray[Any]]:
        """{input name: array [len(indices), C, H, W] or [len(indices), H, W, C]}."""
        pixels = np.empty((len(indices), *self._spec.shape[1:]), self._spec.dtype)
        for row, index in enumerate(indices):
            image = self._decode(self._files[index])
            if self._axis == 1:
                image = image.transpose(2, 0, 1)
            pixels[row] = (
                image if self._spec.dtype == "uint8" else self._normalization.apply(image, self._axis - 1)
            )
        return {self._spec.name: pixels}

    def digest(self, index: int) -> bytes:
        """A hash of the image file and of how it is made into an input."""
        recipe = (self._spec, self._resize, self._normalization)
        return hashlib.sha256(repr(recipe).encode() + self._files[index].read_bytes()).digest()

    def _check_header(self, file: Path) -> None:
        try:
            with Image.open(file) as image:
                size, mode = image.size, image.mode
        except _DECODE_ERRORS as error:
            raise _undecodable(file, error) from None
        if mode.startswith(("I", "F")):
            raise MpqError(f"image {file} has pixels of more than 8 bits (mode {mode}): convert it to 8 bits")
        if self._resize is None and size != (self._width, self._height):
            raise MpqError(
                f"image {file} is {size[1]}x{size[0]} (height x width) but input {self._spec.name!r} takes "
                f"{self._height}x{self._width}: use --resize N"
            )

    def _decode(self, file: Path) -> npt.NDArray[np.uint8]:
        """The image as uint8 [H, W, C]."""
        mode = "RGB" if self._spec.shape[self._axis] == 3 else "L"
        try:
            with Image.open(file) as image:
                # Converted first: a palette's indices must not be interpolated.
                pixels = image.convert(mode)
        except _DECODE_ERRORS as error:
            raise _undecodable(file, error) from None
        if pixels.size != (self._width, self._height):
            pixels = pixels.resize((self._width, self._height), Image.Resampling.BICUBIC)
        return np.asarray(pixels).reshape(self._height, self._width, -1)


def _undecodable(file: Path, error: BaseException) -> MpqError:
    return MpqError(f"cannot decode image {file}: {type(error).__name__}")


def _image_input(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, int]:
    """The network's only input and its channel axis."""
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise MpqError(
            f"a folder of images feeds one input but the network has {names}: give an .npz instead"
        )
    spec = inputs[0]
    axis = channel_axis(spec.shape)
    if axis is None or spec.dtype not in ("float16", "float32", "float64", "uint8"):
        raise MpqError(
            f"input {spec.name!r} ({spec.dtype} {list(spec.shape)}) takes no images "
            "([b, C, H, W] or [b, H, W, C] with 1 or 3 channels): give an .npz instead"
        )
    return spec, axis


def _read_table(folder: Path, classes: int | None) -> tuple[list[Path], npt.NDArray[Any] | None]:
    """The image files and labels of ``folder``/labels.csv; labels are None where all cells are empty."""
    table = folder / "labels.csv"
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            lacking = [column for column in ("file", "label") if column not in columns]
            if lacking:
                raise MpqError(
                    f"{table} has no column {lacking[0]!r}: its first line must hold file,label (it has "
                    f"{','.join(columns) or 'nothing'})"
                )
            rows = [(reader.line_num, row["file"] or "", row["label"] or "") for row in reader]
    except FileNotFoundError:
        raise MpqError(
            f"{folder} has no labels.csv (columns file,label), which says what each image is"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MpqError(f"cannot read {table}: {error}") from None
    if not rows:
        raise MpqError(f"{table} is empty: it names no images")
    files = [_inside(folder, name, f"{table} line {line}") for line, name, _ in rows]
    if not any(label.strip() for *_, label in rows):
        return files, None
    whole = classes is not None or all(_is_integer(label) for *_, label in rows)
    return files, np.array([_number(label, whole, f"{table} line {line}") for line, _, label in rows])


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file ``name`` of ``folder``. Symbolic links are followed: they are the folder owner's choice."""
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or PurePosixPath(name).is_absolute() or ".." in windows.parts:
        raise MpqError(f"{where}: file {name!r} lies outside the folder")
    if not name or not (folder / name).is_file():
        raise MpqError(f"{where}: there is no file {name!r} in the folder")
    return folder / name


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _number(text: str, whole: bool, where: str) -> int | float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        wanted = "a whole number (a class index)" if whole else "a number"
        raise MpqError(f"{where}: label {text!r} is not {wanted}") from None
