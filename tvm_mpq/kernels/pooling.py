"""Pooling over windows and over the whole plane, in float32 and on 8-bit tensors."""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx
from tvm.tirx import Expr, IterVar, PrimFunc

from tvm_mpq.kernels.convolution import ConvolutionShape, padded_input
from tvm_mpq.kernels.elementwise import bounded
from tvm_mpq.kernels.requantize import requantize
from tvm_mpq.kernels.schedule_default import ROWS

Reduce = Callable[[Expr, list[IterVar]], Expr]


def max_pool(shape: ConvolutionShape, dtype: str) -> PrimFunc:
    """[N·H·W, C] → [rows, C], the same dtype and, for uint8, the same grid. Padding never wins."""
    x = te.placeholder((shape.batch * shape.height * shape.width, shape.in_channels), dtype, "x")
    # Between the taps of a dilated window an edge's element may be one that the window does not hold.
    dense = shape.dilation == (1, 1)
    stage = _repeated_edges(x, shape) if dense else padded_input(x, shape, tirx.min_value(dtype))
    out = _window(stage, shape, lambda value, axes: te.max(value, axis=axes), "out")
    return te.create_prim_func([x, out]).with_attr(ROWS, _rows(shape))


def _repeated_edges(x: te.Tensor, shape: ConvolutionShape) -> te.Tensor:
    """The padded input of a maximum: no window lies in the padding alone, so that an edge's element adds nothing."""
    top, left, bottom, right = shape.padding

    def element(n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
        row = te.max(te.min(h - top, shape.height - 1), 0) if top or bottom else h
        column = te.max(te.min(w - left, shape.width - 1), 0) if left or right else w
        return x[(n * shape.height + row) * shape.width + column, c]

    dims = (shape.batch, shape.height + top + bottom, shape.width + left + right, shape.in_channels)
    return te.compute(dims, element, "padded")


def _rows(shape: ConvolutionShape) -> list[int]:
    return [shape.batch, shape.out_height, shape.out_width]


def average_pool(shape: ConvolutionShape, dtype: str, count_padding: bool) -> PrimFunc:
    """Mean over each window; ``count_padding``: the divisor counts padded elements (as zeros).

    float32: x, out. uint8: x, multiplier float32[rows], bias int32[rows], grid int32[2], out with
    ``out = requantize(Σ q + bias)``; the multiplier of a row is input scale / (divisor · output scale), its
    bias −zero-point · (elements that are not padding), and padding adds 0 to the sum.
    """
    x = te.placeholder((shape.batch * shape.height * shape.width, shape.in_channels), dtype, "x")
    accumulator = "int32" if dtype == "uint8" else "float32"
    stage = padded_input(x, shape, tirx.const(0, dtype))
    total = _window(stage, shape, lambda value, axes: te.sum(value.astype(accumulator), axis=axes), "total")
    if dtype == "uint8":
        multiplier = te.placeholder((shape.rows,), "float32", "multiplier")
        bias = te.placeholder((shape.rows,), "int32", "bias")
        grid = te.placeholder((2,), "int32", "grid")
        out = te.compute(
            total.shape,
            lambda m, c: requantize(total[m, c] + bias[m], bounded(multiplier[m]), grid[1]),
            "out",
        )
        return te.create_prim_func([x, multiplier, bias, grid, out]).with_attr(ROWS, _rows(shape))

    def mean(m: Expr, c: Expr) -> Expr:
        divisor = tirx.const(shape.kernel[0] * shape.kernel[1], "float32")
        if not count_padding:
            divisor = (_extent(m, shape, 0) * _extent(m, shape, 1)).astype("float32")
        return total[m, c] / divisor

    out = te.compute(total.shape, mean, "out")
    return te.create_prim_func([x, out]).with_attr(ROWS, _rows(shape))


def _extent(m: Expr, shape: ConvolutionShape, axis: int) -> Expr:
    """Elements of row ``m``'s window along ``axis`` that are not padding."""
    ow = shape.out_width
    position = m // ow % shape.out_height if axis == 0 else m % ow
    start = position * shape.stride[axis] - shape.padding[axis]
    size = shape.height if axis == 0 else shape.width
    step = shape.dilation[axis]
    # The first and last of the window's elements, start + i · step, that lie in 0 … size − 1.
    first = te.max((step - 1 - start) // step, 0)
    last = te.min((size - 1 - start) // step, shape.kernel[axis] - 1)
    return last - first + 1


def global_average_pool(batch: int, plane: int, channels: int, dtype: str) -> PrimFunc:
    """[N·plane, C] → [N, C].

    float32: x, out. uint8: x, multiplier float32[1], bias int32[1], grid int32[2], out.
    """
    x = te.placeholder((batch * plane, channels), dtype, "x")
    accumulator = "int32" if dtype == "uint8" else "float32"
    p = te.reduce_axis((0, plane), "p")
    total = te.compute(
        (batch, channels), lambda n, c: te.sum(x[n * plane + p, c].astype(accumulator), axis=p), "total"
    )
    if dtype == "uint8":
        multiplier = te.placeholder((1,), "float32", "multiplier")
        bias = te.placeholder((1,), "int32", "bias")
        grid = te.placeholder((2,), "int32", "grid")
        out = te.compute(
            total.shape,
            lambda n, c: requantize(total[n, c] + bias[0], bounded(multiplier[0]), grid[1]),
            "out",
        )
        return te.create_prim_func([x, multiplier, bias, grid, out])
    scale = tirx.const(1.0 / plane, "float32")
    return te.create_prim_func([x, te.compute(total.shape, lambda n, c: total[n, c] * scale, "out")])


def _window(stage: te.Tensor, shape: ConvolutionShape, reduce: Reduce, name: str) -> te.Tensor:
    r = te.reduce_axis((0, shape.kernel[0]), "r")
    s = te.reduce_axis((0, shape.kernel[1]), "s")
    oh, ow = shape.out_height, shape.out_width

    def element(m: Expr, c: Expr) -> Expr:
        h = m // ow % oh * shape.stride[0] + r * shape.dilation[0]
        w = m % ow * shape.stride[1] + s * shape.dilation[1]
        return reduce(stage[m // (oh * ow), h, w, c], [r, s])

    return te.compute((shape.rows, shape.in_channels), element, name)
