"""Samples from an .npz: arrays named as the network's inputs, and labels."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.dataset.labels import check_labels
from tvm_mpq.dataset.normalization import Normalization, channel_axis
from tvm_mpq.errors import MpqError
from tvm_mpq.tensor_spec import TensorSpec

Array = npt.NDArray[Any]
LABELS = "labels"
_CHUNK_ELEMENTS = 1 << 22


class ArraySource:
    """Arrays of an .npz, held in the dtype of the file and cast a batch at a time.

    Normalization is for the usual case of stored pixels: it needs a network with one float input.
    """

    def __init__(
        self, path: Path, inputs: Sequence[TensorSpec], normalization: Normalization, classes: int | None
    ) -> None:
        arrays = _load(path, [spec.name for spec in inputs])
        self._inputs = tuple(inputs)
        self._normalization = None if normalization.is_identity else normalization
        if self._normalization is not None:
            self._check_normalization(self._normalization)
        for spec in inputs:
            _check_samples(arrays[spec.name], spec, path)
        sizes = {spec.name: len(arrays[spec.name]) for spec in inputs}
        if len(set(sizes.values())) > 1:
            counts = ", ".join(f"{name!r} has {size}" for name, size in sizes.items())
            raise MpqError(f"arrays in {path} differ in their number of samples: {counts}")
        self.size = next(iter(sizes.values()))
        if self.size == 0:
            raise MpqError(f"{path} is empty: it has no samples")
        # A network may have an input of that name; such data has no labels.
        labels = None if LABELS in sizes else arrays.pop(LABELS, None)
        self.labels = None if labels is None else check_labels(labels, self.size, classes, str(path))
        self._arrays = arrays

    def read(self, indices: npt.NDArray[np.intp]) -> dict[str, Array]:
        """Input name → array [len(indices), …] in the network's dtype."""
        return {spec.name: self._cast(self._arrays[spec.name][indices], spec) for spec in self._inputs}

    def digest(self, index: int) -> bytes:
        """A hash of the values of one sample as the network gets them."""
        digest = hashlib.sha256()
        for name, array in self.read(np.array([index])).items():
            digest.update(f"{name!r} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def _cast(self, array: Array, spec: TensorSpec) -> Array:
        if self._normalization is None:
            return array.astype(spec.dtype)
        return self._normalization.apply(array, channel_axis(spec.shape) or 0).astype(spec.dtype)

    def _check_normalization(self, normalization: Normalization) -> None:
        spec = self._inputs[0]
        if len(self._inputs) > 1 or np.dtype(spec.dtype).kind != "f":
            raise MpqError(
                "--mean and --scale need a network with one float input: leave them out for this data"
            )
        axis = channel_axis(spec.shape)
        normalization.check_channels(None if axis is None else spec.shape[axis])


def _load(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """The arrays ``names`` of an .npz, and ``labels`` where there is one; others are not read."""
    if not zipfile.is_zipfile(path):
        raise MpqError(f"{path} is not an .npz file (or is truncated): write it with numpy.savez")
    reading = "its directory"
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                there = ", ".join(archive.files) or "none"
                raise MpqError(f"{path} has no array for input {missing[0]!r}: it has {there}")
            arrays = {}
            for reading in dict.fromkeys([*names, *({LABELS} & set(archive.files))]):
                arrays[reading] = archive[reading]
                if not isinstance(arrays[reading], np.ndarray):
                    raise MpqError(f"cannot read array {reading!r} of {path}: it is not a NumPy array")
            return arrays
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise MpqError(f"cannot read {reading!r} of {path}, which may be damaged: {reason}") from None


def _check_samples(array: Array, spec: TensorSpec, path: Path) -> None:
    sample = tuple(spec.shape[1:])
    where = f"array {spec.name!r} in {path}"
    if array.ndim == 0 or array.shape[1:] != sample:
        raise MpqError(
            f"{where} has shape {list(array.shape)}: expected [samples{''.join(f', {n}' for n in sample)}]"
        )
    source, target = array.dtype, np.dtype(spec.dtype)
    if not _kind_fits(source, target):
        raise MpqError(f"{where} is {source}, which does not cast safely to the input's {target}")
    step = max(1, _CHUNK_ELEMENTS // max(1, int(np.prod(sample))))
    for start in range(0, len(array), step):
        bad, why = _unsafe(array[start : start + step], target)
        if bad.any():
            at = start + int(np.argwhere(bad)[0][0])
            raise MpqError(f"{where} {why} in sample {at}")


def _kind_fits(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    allowed = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}
    return source.kind in allowed.get(target.kind, "")


def _unsafe(chunk: Array, target: np.dtype[Any]) -> tuple[npt.NDArray[np.bool_], str]:
    """Where values of ``chunk`` would not survive the cast to ``target``, and why."""
    if chunk.dtype.kind == "f":
        finite = np.isfinite(chunk)
        if not finite.all():
            return ~finite, "holds NaN or infinity"
        return np.abs(chunk) > np.finfo(target).max, f"holds a value beyond the range of {target}"
    if chunk.dtype.kind == "b":
        return np.zeros(chunk.shape, np.bool_), ""
    if target.kind == "f":
        # Every integer up to 2^(mantissa bits + 1) is exact; beyond that some are not.
        low, high = -(2 ** (np.finfo(target).nmant + 1)), 2 ** (np.finfo(target).nmant + 1)
    else:
        low, high = int(np.iinfo(target).min), int(np.iinfo(target).max)
    return (chunk < low) | (chunk > high), f"holds an integer that {target} cannot represent exactly"
