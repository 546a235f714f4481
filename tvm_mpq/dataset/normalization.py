"""From pixels to what the network was trained on: x = (pixel - mean) * scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError


@dataclass(frozen=True)
class Normalization:
    """One mean and scale for all channels, or one for each."""

    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, mean: float | Sequence[float], scale: float | Sequence[float]) -> Normalization:
        """Check and keep what a user gave; raises MpqError for NaN, infinity or a scale of 0."""
        result = cls(_as_tuple(mean), _as_tuple(scale))
        for option, values in (("--mean", result.mean), ("--scale", result.scale)):
            if not values or not all(math.isfinite(value) for value in values):
                raise MpqError(f"{option} needs finite numbers, not {values}")
        if 0.0 in result.scale:
            raise MpqError("--scale must not be 0: every sample would be the same")
        return result

    @property
    def is_identity(self) -> bool:
        """Whether applying it changes nothing."""
        return set(self.mean) == {0.0} and set(self.scale) == {1.0}

    def check_channels(self, channels: int | None) -> None:
        """Raise MpqError unless there is one value for all channels or one for each of ``channels``."""
        for option, values in (("--mean", self.mean), ("--scale", self.scale)):
            if len(values) not in (1, channels):
                has = "no channels" if channels is None else f"{channels} channel(s)"
                raise MpqError(
                    f"{option} has {len(values)} values but the input has {has}: give one value or one each"
                )

    def apply(self, x: npt.NDArray[Any], channel_axis: int) -> npt.NDArray[np.float32]:
        """(x - mean) * scale in float32, two roundings an element; ``x`` is not changed."""
        shape = [1] * x.ndim
        shape[channel_axis] = -1
        result = x.astype(np.float32)
        result -= np.asarray(self.mean, np.float32).reshape(shape if len(self.mean) > 1 else ())
        result *= np.asarray(self.scale, np.float32).reshape(shape if len(self.scale) > 1 else ())
        return result


def _as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    if isinstance(values, (int, float)):
        return (float(values),)
    return tuple(float(value) for value in values)


def channel_axis(shape: Sequence[int]) -> int | None:
    """The channel axis of an image-shaped input [b, C, H, W] or [b, H, W, C] with 1 or 3 channels, else None.

    Where both readings fit, the first is taken: ONNX networks are NCHW unless they say otherwise.
    """
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] in (1, 3)), None)
