"""Range observers: from a stream of a tensor's values to the range its grid should cover."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError
from tvm_mpq.quantization.histogram import BINS, Histogram
from tvm_mpq.quantization.ranges import entropy_range, least_squares_range, percentile_range


class Observer(ABC):
    """Sees a tensor's values a batch at a time, in bounded memory; names ``tensor`` when they are bad."""

    def __init__(self, tensor: str = "tensor") -> None:
        self.tensor = tensor
        self._low = np.inf
        self._high = -np.inf

    def update(self, array: npt.NDArray[Any]) -> None:
        """Take a float array of any shape; raises MpqError if it holds NaN or infinity. Empty is nothing."""
        if array.size == 0:
            return
        values = np.ascontiguousarray(array, np.float32).reshape(-1)
        # Both propagate NaN, so two fast reductions are a check for finite values as well.
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise MpqError(
                f"tensor {self.tensor!r} holds NaN or infinity during calibration: check data and weights"
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._add(values, low, high)

    def range(self) -> tuple[float, float]:
        """The (low, high) to quantize; inside the values' exact minimum and maximum, widened to hold zero.

        Raises MpqError when nothing was observed.
        """
        if self._low > self._high:
            raise MpqError(
                f"tensor {self.tensor!r} was never observed: calibration needs at least one sample"
            )
        return self._range()

    def _add(self, values: npt.NDArray[np.float32], low: float, high: float) -> None:
        return

    @abstractmethod
    def _range(self) -> tuple[float, float]: ...


class MinMaxObserver(Observer):
    """The whole range seen."""

    def _range(self) -> tuple[float, float]:
        return min(self._low, 0.0), max(self._high, 0.0)


class _HistogramObserver(Observer):
    def __init__(self, tensor: str = "tensor", bins: int = BINS) -> None:
        super().__init__(tensor)
        if bins < 512:
            raise MpqError(f"an observer needs at least 512 histogram bins, not {bins}")
        self._histogram = Histogram(bins)

    def _add(self, values: npt.NDArray[np.float32], low: float, high: float) -> None:
        self._histogram.add(values, low, high)


class PercentileObserver(_HistogramObserver):
    """The central ``percentile`` percent of the values; the rest is cut off evenly on both sides."""

    def __init__(self, tensor: str = "tensor", percentile: float = 99.99, bins: int = BINS) -> None:
        super().__init__(tensor, bins)
        if not 50.0 <= percentile <= 100.0:
            raise MpqError(f"a percentile of a range is 50 to 100, not {percentile}")
        self._percentile = percentile

    def _range(self) -> tuple[float, float]:
        return percentile_range(self._histogram, self._percentile)


class MseObserver(_HistogramObserver):
    """The range whose 8-bit grid has the least mean squared error."""

    def _range(self) -> tuple[float, float]:
        return least_squares_range(self._histogram)


class EntropyObserver(_HistogramObserver):
    """The range whose 8-bit grid loses least information (KL divergence, as TensorRT does)."""

    def _range(self) -> tuple[float, float]:
        return entropy_range(self._histogram)


_KINDS: dict[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": MseObserver,
    "entropy": EntropyObserver,
}
OBSERVERS = tuple(_KINDS)


def make_observer(name: str, *, tensor: str = "tensor", **options: Any) -> Observer:
    """The observer ``name`` of :data:`OBSERVERS` for ``tensor`` (used in messages).

    Options: ``percentile`` (of "percentile"), ``bins`` (of all but "minmax").
    Raises MpqError for an unknown name or option.
    """
    if name not in _KINDS:
        raise MpqError(f"unknown observer {name!r}: use {', '.join(OBSERVERS)}")
    try:
        return _KINDS[name](tensor, **options)
    except TypeError:
        raise MpqError(f"observer {name!r} has no option like {', '.join(map(repr, options))}") from None
