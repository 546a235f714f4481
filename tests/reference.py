"""Integer operators in NumPy, written for clarity: what the kernels must equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.quantization.addition import addition_factors
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.requantize import requantize
from tvm_mpq.quantization.sampling import linear, nearest

Array = npt.NDArray[np.generic]


def convolve(x: Array, w: Array, shape: ConvolutionShape) -> Array:
    """x [N, H, W, C] (zero-point taken off), w [O, I/groups, R, S], int64 or float64 → the same [N, OH, OW, O]."""
    top, left, bottom, right = shape.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    out = np.zeros((shape.batch, shape.out_height, shape.out_width, shape.out_channels), x.dtype)
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


def convolve_transposed(
    x: Array, w: Array, groups: int, stride: tuple[int, int], padding: Sequence[int], out: tuple[int, int]
) -> Array:
    """x int64 [N, H, W, C], w int64 [C, K/groups, R, S] → int64 [N, OH, OW, K]: every product goes to its place."""
    n, h, v, c = x.shape
    _, k, r, s = w.shape
    height, width = (
        max((a - 1) * b + d, e + f)
        for a, b, d, e, f in zip((h, v), stride, (r, s), out, padding[:2], strict=True)
    )
    full = np.zeros((n, height, width, groups * k), np.int64)
    per = c // groups
    for g in range(groups):
        for i in range(r):
            for j in range(s):
                part = x[..., g * per : (g + 1) * per] @ w[g * per : (g + 1) * per, :, i, j]
                rows = slice(i, i + (h - 1) * stride[0] + 1, stride[0])
                columns = slice(j, j + (v - 1) * stride[1] + 1, stride[1])
                full[:, rows, columns, g * k : (g + 1) * k] += part
    return full[:, padding[0] : padding[0] + out[0], padding[1] : padding[1] + out[1]]


def half_extreme(rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> Array:
    """int64 in low … high, a half of them one or the other."""
    return np.where(
        rng.random(shape) < 0.5, rng.choice([low, high], shape), rng.integers(low, high + 1, shape)
    )


def quantized_convolution(
    q: Array,
    codes: Array,
    bias: Array,
    multiplier: Array,
    zeros: tuple[int, int],
    shape: ConvolutionShape,
    out: Output | None = None,
) -> Array:
    """q uint8 [N, H, W, C], codes int8 [O, …], bias int32 [O], multiplier float32 [O] → ``out`` (uint8) [rows, O]."""
    acc = convolve(q.astype(np.int64) - zeros[0], codes.astype(np.int64), shape) + bias
    assert np.abs(acc).max(initial=0) < 2**31
    sums = acc.astype(np.int32).reshape(shape.rows, shape.out_channels)
    if out is None or out.dtype == "uint8":
        return requantize(sums, multiplier, zeros[1])
    return np.clip(sums.astype(np.float32) * multiplier, np.float32(out.low), np.float32(out.high))


def windows(
    x: Array, shape: ConvolutionShape, fill: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """x [N, H, W, C] → every window's elements [R·S, N, OH, OW, C] as float64, and which are not padding."""
    top, left, bottom, right = shape.padding
    border = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = np.pad(x.astype(np.float64), border, constant_values=fill)
    real = np.pad(np.ones(x.shape, bool), border)
    taps = []
    for r in range(shape.kernel[0]):
        for s in range(shape.kernel[1]):
            h, w = r * shape.dilation[0], s * shape.dilation[1]
            rows = slice(h, h + (shape.out_height - 1) * shape.stride[0] + 1, shape.stride[0])
            columns = slice(w, w + (shape.out_width - 1) * shape.stride[1] + 1, shape.stride[1])
            taps.append((padded[:, rows, columns], real[:, rows, columns]))
    return np.stack([values for values, _ in taps]), np.stack([inside for _, inside in taps])


def quantized_average(
    q: Array, shape: ConvolutionShape, source: Grid, out: Grid, count_padding: bool
) -> npt.NDArray[np.uint8]:
    """q uint8 [N, H, W, C] → the mean of each window on the grid ``out``, uint8 [N, OH, OW, C]."""
    values, real = windows(q.astype(np.int64) - source.zero_point, shape, 0.0)
    divisor = np.full(real.shape[1:], len(real)) if count_padding else real.sum(axis=0)
    multiplier = (source.scale / (divisor * out.scale)).astype(np.float32)
    return requantize(values.sum(axis=0).astype(np.int32), multiplier, out.zero_point)


def quantized_sum(
    a: Array, b: Array, grids: tuple[Grid, Grid], out: Grid, subtract: bool = False
) -> npt.NDArray[np.uint8]:
    """a, b uint8 that broadcast → their sum or difference on the grid ``out``."""
    (f0, f1, f2), multiplier = addition_factors(*grids, out, subtract)
    total = a.astype(np.int64) * int(f0) + b.astype(np.int64) * int(f1) + int(f2)
    assert np.abs(total).max(initial=0) < 2**31
    return requantize(total.astype(np.int32), multiplier, out.zero_point)


def quantized_product(a: Array, b: Array, grids: tuple[Grid, Grid], out: Grid) -> npt.NDArray[np.uint8]:
    """a, b uint8 that broadcast → their product on the grid ``out``."""
    left, right = grids
    product = (a.astype(np.int32) - left.zero_point) * (b.astype(np.int32) - right.zero_point)
    with np.errstate(over="ignore", under="ignore"):
        ratio = np.float32(left.scale * right.scale / out.scale)
    return requantize(product, ratio, out.zero_point)


def rescaled(q: Array, source: Grid, out: Grid) -> npt.NDArray[np.uint8]:
    """q uint8 on the grid ``source`` → uint8 on ``out``."""
    with np.errstate(over="ignore"):
        ratio = np.float32(source.scale / out.scale)
    return requantize(q.astype(np.int32) - source.zero_point, ratio, out.zero_point)


def tabulated(
    q: Array, function: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], source: Grid, out: Grid
) -> npt.NDArray[np.uint8]:
    """q uint8 on the grid ``source`` → ``function`` of each value in float64, rounded to ``out``."""
    x = (q.astype(np.float64) - source.zero_point) * source.scale
    return np.clip(np.rint(function(x) / out.scale) + out.zero_point, 0, 255).astype(np.uint8)


def resized(
    q: Array, size: Sequence[int], mode: str, rounding: str | None, grid: Grid
) -> npt.NDArray[np.uint8]:
    """q uint8 [N, C, H, W] → [N, C, *size]: to the nearest element, or linear where ``rounding`` is None."""
    if rounding is not None:
        rows, columns = (nearest(a, b, mode, rounding) for a, b in zip(q.shape[2:], size, strict=True))
        return q[:, :, rows][..., columns]
    (rows, down), (columns, right) = (linear(a, b, mode) for a, b in zip(q.shape[2:], size, strict=True))
    down, right = (np.rint(each * 1024).astype(np.int64) for each in (down, right))
    values = q.astype(np.int64) - grid.zero_point
    across = values[..., columns[0]] * (1024 - right) + values[..., columns[1]] * right
    total = across[:, :, rows[0]] * (1024 - down)[:, None] + across[:, :, rows[1]] * down[:, None]
    return requantize(total.astype(np.int32), np.float32(2.0**-20), grid.zero_point)
