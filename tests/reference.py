"""Integer operators in NumPy, written for clarity: what the kernels must equal bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.quantization.requantize import requantize

Array = npt.NDArray[np.generic]


def convolve(x: Array, w: Array, shape: ConvolutionShape) -> Array:
    """x int64 [N, H, W, C] (zero-point taken off), w int64 [O, I/groups, R, S] → int64 [N, OH, OW, O]."""
    top, left, bottom, right = shape.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    out = np.zeros((shape.batch, shape.out_height, shape.out_width, shape.out_channels), np.int64)
    per_in, per_out = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    for g in range(shape.groups):
        channels = slice(g * per_out, (g + 1) * per_out)
        for r in range(shape.kernel[0]):
            for s in range(shape.kernel[1]):
                h, v = r * shape.dilation[0], s * shape.dilation[1]
                window = x[
                    :,
                    h : h + (shape.out_height - 1) * shape.stride[0] + 1 : shape.stride[0],
                    v : v + (shape.out_width - 1) * shape.stride[1] + 1 : shape.stride[1],
                    g * per_in : (g + 1) * per_in,
                ]
                out[..., channels] += window @ w[channels, :, r, s].T
    return out


def quantized_convolution(
    q: Array, codes: Array, bias: Array, multiplier: Array, zeros: tuple[int, int], shape: ConvolutionShape
) -> Array:
    """q uint8 [N, H, W, C], codes int8 [O, …], bias int32 [O], multiplier float32 [O] → uint8 [rows, O]."""
    acc = convolve(q.astype(np.int64) - zeros[0], codes.astype(np.int64), shape) + bias
    assert np.abs(acc).max(initial=0) < 2**31
    return requantize(acc.astype(np.int32), multiplier, zeros[1]).reshape(shape.rows, shape.out_channels)
