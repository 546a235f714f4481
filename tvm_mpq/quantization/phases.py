"""A strided transposed convolution as one ordinary convolution whose channels are interleaved.

y[i·s + p − t] = Σ_j x[i − j] · w[p + s·j]: each phase p < s of the output is an ordinary convolution by every s-th tap,
and all of them read the same window of the input (sub-pixel convolution: Shi et al., arXiv 1609.07009).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def phase_weights(weight: npt.NDArray[Any], groups: int, stride: tuple[int, int]) -> npt.NDArray[Any]:
    """[C, K/g, R, S] → [g·s_h·s_w·K/g, C/g, ⌈R/s_h⌉, ⌈S/s_w⌉].

    Output channels are ordered by group, phase row, phase column and k. Taps are turned around, as an ordinary
    convolution reads them; a phase that lacks one has a zero.
    """
    channels, outputs, r, s = weight.shape
    rows, columns = -(-r // stride[0]), -(-s // stride[1])
    padded = np.zeros((channels, outputs, rows * stride[0], columns * stride[1]), weight.dtype)
    padded[:, :, :r, :s] = weight
    taps = padded.reshape(groups, channels // groups, outputs, rows, stride[0], columns, stride[1])
    turned = taps[:, :, :, ::-1, :, ::-1, :].transpose(0, 4, 6, 2, 1, 3, 5)
    return np.ascontiguousarray(turned).reshape(-1, channels // groups, rows, columns)


def phase_values(values: npt.NDArray[Any], groups: int, stride: tuple[int, int]) -> npt.NDArray[Any]:
    """A value [K] of each output channel → the same for each phase, in the order of :func:`phase_weights`."""
    repeated = np.broadcast_to(
        values.reshape(groups, 1, -1), (groups, stride[0] * stride[1], len(values) // groups)
    )
    return repeated.reshape(-1)
