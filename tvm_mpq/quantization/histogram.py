"""A streaming histogram of fixed size whose cells grow by powers of two, so that growing loses nothing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BINS = 2048
# Values binned at a time: the temporaries stay in the cache.
_CHUNK = 1 << 15
# Cells no narrower than this: its reciprocal must be a finite float32.
_SMALLEST_EXPONENT = -120


class Histogram:
    """Counts of the values of a stream in cells [i·w, (i+1)·w), w a power of two and i an integer.

    Cells are aligned to zero, so when a value falls outside, w doubles and pairs of cells merge exactly.
    Every value is counted. Exact zeros (what ReLU leaves) are counted apart: every grid represents them.
    """

    def __init__(self, bins: int = BINS) -> None:
        self._bins = bins
        self._exponent = _SMALLEST_EXPONENT
        self._start = 0
        self._counts = np.zeros(bins, np.int64)
        self.zeros = 0
        self.low = 0.0
        self.high = 0.0

    @property
    def width(self) -> float:
        """The width of a cell."""
        return math.ldexp(1.0, self._exponent)

    @property
    def start(self) -> int:
        """The first cell's index: cell k of :attr:`counts` is [(start + k)·width, (start + k + 1)·width)."""
        return self._start

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many values other than 0 lie in each cell, int64 [bins]."""
        return self._counts

    def centers(self) -> npt.NDArray[np.float64]:
        """The middle of each cell, float64 [bins]."""
        return (np.arange(self._bins, dtype=np.float64) + (self._start + 0.5)) * self.width

    def add(self, values: npt.NDArray[np.float32], low: float, high: float) -> None:
        """Count the finite ``values`` (flat), whose exact minimum and maximum are ``low`` and ``high``."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow()
        inverse = np.float32(math.ldexp(1.0, -self._exponent))
        shift = np.float32(-self._start)
        counted = np.zeros(self._bins + 1, np.int64)
        buffer = np.empty(min(_CHUNK, values.size), np.float32)
        for begin in range(0, values.size, _CHUNK):
            part = values[begin : begin + _CHUNK]
            cells = np.multiply(part, inverse, out=buffer[: part.size])
            cells += shift
            counted += np.bincount(cells.astype(np.int32), minlength=self._bins + 1)
        # The shift rounds: a value just below the last cell's end may land on it.
        counted[self._bins - 1] += counted[self._bins]
        zeros = values.size - int(np.count_nonzero(values))
        counted[-self._start] -= zeros
        self.zeros += zeros
        self._counts += counted[: self._bins]

    def _grow(self) -> None:
        """Widen the cells until [low, high], which holds zero, fits; then place the cells around it."""
        exponent = self._exponent
        while True:
            first = math.floor(math.ldexp(self.low, -exponent))
            last = math.floor(math.ldexp(self.high, -exponent))
            if last - first < self._bins:
                break
            # Doubling is at most halving the number of cells, so this skips no width that would do.
            exponent += max(1, math.frexp((last - first) / self._bins)[1] - 1)
        # Spare cells go where values are; cell 0 stays inside, for the exact zeros.
        spare = self._bins - 1 - (last - first)
        start = first - (spare if self.high == 0.0 else 0 if self.low == 0.0 else spare // 2)
        if (exponent, start) == (self._exponent, self._start):
            return
        if exponent == self._exponent and self._start <= first and last < self._start + self._bins:
            return
        old = np.flatnonzero(self._counts)
        moved = ((old + self._start) >> (exponent - self._exponent)) - start
        # A value rounded onto the cell after its own may now lie one past the end.
        moved = np.minimum(moved, self._bins - 1)
        counts = np.bincount(moved, weights=self._counts[old], minlength=self._bins)
        self._counts = counts.astype(np.int64)
        self._exponent, self._start = exponent, start
