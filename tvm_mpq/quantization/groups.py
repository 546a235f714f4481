"""Groups of weights along the reduction, each with a multiplier of its own.

The reduction of an output channel runs over kernel row, kernel column and input channel, the last one fastest, as the
kernels' packed weights do. A group is ``size`` consecutive elements of it and starts anew at every kernel row: with a
size that divides the input channels, it is that many channels of one kernel position. A kernel row shorter than the
size is not cut: as many whole rows as fit make one group. The last group of a row, or of the channel, may be shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Grouping:
    """``length`` elements in lines of ``line``, each cut into groups of ``size``: the last of a line may be shorter."""

    length: int
    line: int
    size: int

    @classmethod
    def of(cls, shape: Sequence[int], group: int) -> Grouping:
        """The groups of ``group`` elements of weights of ``shape`` [K, C, R, S]."""
        if group < 1:
            raise ValueError(f"a group has at least one element, not {group}")
        _, channels, rows, columns = shape
        row = columns * channels
        if row >= group:
            return cls(rows * row, row, group)
        line = row * min(rows, group // row)
        return cls(rows * row, line, line)

    @property
    def per_line(self) -> int:
        """Groups in a line."""
        return -(-self.line // self.size)

    @property
    def count(self) -> int:
        """Groups in a channel."""
        lines, rest = divmod(self.length, self.line)
        return lines * self.per_line + -(-rest // self.size)

    def index(self) -> npt.NDArray[np.int64]:
        """The group of each element, int64 [length], in the order of the reduction."""
        position = np.arange(self.length)
        return position // self.line * self.per_line + position % self.line // self.size

    def split(self, rows: Array) -> Array:
        """[K, length] → [K, count, size], zeros where a group is shorter."""
        k, lines = len(rows), -(-self.length // self.line)
        whole = np.zeros((k, lines * self.line), rows.dtype)
        whole[:, : self.length] = rows
        cut = np.zeros((k * lines, self.per_line * self.size), rows.dtype)
        cut[:, : self.line] = whole.reshape(k * lines, self.line)
        return cut.reshape(k, lines * self.per_line, self.size)[:, : self.count]


def reduction_rows(w: Array) -> Array:
    """[K, C, R, S] → [K, R·S·C], in the order of the reduction."""
    return np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(len(w), -1)


def from_reduction_rows(rows: Array, shape: Sequence[int]) -> Array:
    """The inverse of :func:`reduction_rows` for weights of ``shape`` [K, C, R, S]."""
    k, c, r, s = shape
    return np.ascontiguousarray(rows.reshape(k, r, s, c).transpose(0, 3, 1, 2))
