"""From a path to a data set, with every mistake a user can make answered here or in the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvm_mpq.dataset.arrays import ArraySource
from tvm_mpq.dataset.dataset import Dataset, Source
from tvm_mpq.dataset.images import ImageSource
from tvm_mpq.dataset.normalization import Normalization
from tvm_mpq.errors import MpqError
from tvm_mpq.tensor_spec import TensorSpec


def open_dataset(
    path: str | Path,
    inputs: Sequence[TensorSpec],
    *,
    resize: int | None = None,
    mean: float | tuple[float, ...] = 0.0,
    scale: float | tuple[float, ...] = 1.0,
    limit: int | None = None,
    classes: int | None = None,
) -> Dataset:
    """Open an .npz (arrays named as ``inputs``, optionally ``labels``) or a folder of images with labels.csv.

    Samples are single: the first axis of ``inputs`` is the network's batch and is not part of one.
    Values become x = (value - mean) * scale in float32, ``mean`` and ``scale`` one for all channels or one
    for each. Images are RGB, 0 to 255, and the whole image is resized to ``resize`` x ``resize``.
    ``limit`` takes so many samples spread evenly. ``classes`` is the number of classes where labels are
    class indices; None lets labels be any finite numbers.

    Raises MpqError for data that is missing, damaged or empty, does not fit the inputs in names, shapes,
    dtypes or number of samples, holds NaN or infinity, or has labels that are no classes or out of range.
    """
    path = Path(path)
    _check_inputs(inputs)
    normalization = Normalization.of(mean, scale)
    if resize is not None and resize < 1:
        raise MpqError(f"--resize needs a size of at least 1 pixel, not {resize}")
    source: Source
    if path.is_dir():
        source = ImageSource(path, inputs, normalization, resize, classes)
    elif not path.exists():
        raise MpqError(f"there is no data at {path}")
    elif resize is not None:
        raise MpqError(f"--resize is for a folder of images; the arrays in {path} must already fit the input")
    else:
        source = ArraySource(path, inputs, normalization, classes)
    dataset = Dataset(source)
    return dataset if limit is None else dataset.take(limit)


def _check_inputs(inputs: Sequence[TensorSpec]) -> None:
    if not inputs:
        raise MpqError("the network has no inputs, so no data fits it")
    for spec in inputs:
        if not spec.shape or min(spec.shape) < 1:
            raise MpqError(
                f"input {spec.name!r} has shape {list(spec.shape)}: it needs a batch axis and fixed sizes"
            )
        try:
            np.dtype(spec.dtype)
        except TypeError:
            raise MpqError(f"input {spec.name!r} is {spec.dtype}, which data files cannot hold") from None
    if len({spec.shape[0] for spec in inputs}) > 1:
        shapes = ", ".join(f"{spec.name!r} {list(spec.shape)}" for spec in inputs)
        raise MpqError(f"the network's inputs differ in their batch axis (the first): {shapes}")
