"""Checks on labels, shared by every kind of data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError


def check_labels(labels: npt.NDArray[Any], samples: int, classes: int | None, where: str) -> npt.NDArray[Any]:
    """Labels [samples, …] as int64 (integers, or whole numbers where ``classes`` is known), else float64.

    ``classes`` is the number of classes when labels are class indices, None when they may be anything
    numeric. Raises MpqError that names ``where`` and the first sample at fault.
    """
    if labels.dtype.kind not in "biuf":
        raise MpqError(f"labels in {where} are {labels.dtype}, not numbers")
    if labels.ndim == 0 or len(labels) != samples:
        count = "one value" if labels.ndim == 0 else str(len(labels))
        raise MpqError(f"labels in {where} do not fit: {count} for {samples} samples")
    if labels.dtype.kind == "f":
        _refuse(~np.isfinite(labels), labels, where, "is not finite")
        if classes is None:
            return labels.astype(np.float64)
        _refuse(labels != np.floor(labels), labels, where, "is not a whole number, so it names no class")
    if classes is not None:
        outside = (labels < 0) | (labels >= classes)
        _refuse(outside, labels, where, f"is out of range: the network has classes 0 to {classes - 1}")
    return labels.astype(np.int64)


def _refuse(bad: npt.NDArray[np.bool_], labels: npt.NDArray[Any], where: str, why: str) -> None:
    if bad.any():
        at = np.argwhere(bad)[0]
        raise MpqError(f"label {labels[tuple(at)]} of sample {at[0]} in {where} {why}")
