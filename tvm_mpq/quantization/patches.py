"""What each output of a convolution sums over: its input patches as rows of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Window:
    """The extents of a convolution: (height, width) pairs, ``padding`` (top, left, bottom, right).

    A matrix multiplication is the default, a 1×1 convolution of rows.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of the output."""
        top, left, bottom, right = self.padding
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        return (
            (height + top + bottom - spans[0]) // self.stride[0] + 1,
            (width + left + right - spans[1]) // self.stride[1] + 1,
        )


def patches(x: npt.NDArray[Any], window: Window, every: int = 1, first: int = 0) -> npt.NDArray[Any]:
    """The patches [groups, C/groups · r · s, positions] of ``x`` [N, H, W, C], in the order of ONNX's weights.

    ``weight.reshape(groups, -1, K)[g]`` times group g is the output at those positions. ``every`` keeps each so manieth
    output row and column, from ``first`` % ``every`` on. Padding holds zeros: ``x`` is real numbers, no codes.
    """
    n, height, width, channels = x.shape
    rows, columns = window.outputs(height, width)
    # At least one row and column, however small the output is.
    start_row, start_column = (first % min(every, extent) for extent in (rows, columns))
    picked = (len(range(start_row, rows, every)), len(range(start_column, columns, every)))
    down, across = (stride * every for stride in window.stride)
    top, left, bottom, right = window.padding
    r, s = window.kernel
    planes = np.zeros((channels, n, height + top + bottom, width + left + right), x.dtype)
    planes[:, :, top : top + height, left : left + width] = x.transpose(3, 0, 1, 2)
    result = np.empty((channels, r, s, n, *picked), x.dtype)
    for i in range(r):
        row = i * window.dilation[0] + start_row * window.stride[0]
        for j in range(s):
            column = j * window.dilation[1] + start_column * window.stride[1]
            end = (row + (picked[0] - 1) * down + 1, column + (picked[1] - 1) * across + 1)
            result[:, i, j] = planes[:, :, row : end[0] : down, column : end[1] : across]
    return result.reshape(window.groups, channels // window.groups * r * s, n * picked[0] * picked[1])
