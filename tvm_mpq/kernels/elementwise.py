"""Elementwise operators and the borders between float and 8-bit regions, on [rows, channels] tensors."""

from __future__ import annotations

from tvm import te, tirx
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.convolution import Output, activate
from tvm_mpq.kernels.requantize import dequantize, quantize, requantize

Shape = tuple[int, ...]


def bounded(multiplier: Expr) -> Expr:
    """``multiplier`` up to 256, beyond which any integer but 0 saturates all the same.

    A tensor can be far larger than the range its result was seen to have; its product must not leave int32.
    """
    return te.min(multiplier, tirx.const(256.0, "float32"))


def add(shape: Shape, out: Output) -> PrimFunc:
    """The sum of two tensors.

    float32: a, b, out. uint8: a, b, factors int32[3], multiplier float32[1], grid int32[2], out with
    ``out = requantize(a · factors[0] + b · factors[1] + factors[2])``: the factors are the scales' ratios in
    fixed point (see ``quantization.addition``), so that the sum is exact before its one rounding.
    """
    a = te.placeholder(shape, out.dtype, "a")
    b = te.placeholder(shape, out.dtype, "b")
    if out.dtype == "float32":
        total = te.compute(shape, lambda *i: activate(a(*i) + b(*i), out), "out")
        return te.create_prim_func([a, b, total])
    factors = te.placeholder((3,), "int32", "factors")
    multiplier = te.placeholder((1,), "float32", "multiplier")
    grid = te.placeholder((2,), "int32", "grid")

    def element(*i: Expr) -> Expr:
        total = a(*i).astype("int32") * factors[0] + b(*i).astype("int32") * factors[1] + factors[2]
        return requantize(total, multiplier[0], grid[1])

    return te.create_prim_func([a, b, factors, multiplier, grid, te.compute(shape, element, "out")])


def activation(shape: Shape, out: Output) -> PrimFunc:
    """A lone relu or clip in float32: x, out."""
    x = te.placeholder(shape, "float32", "x")
    return te.create_prim_func([x, te.compute(shape, lambda *i: activate(x(*i), out), "out")])


def rescale(shape: Shape) -> PrimFunc:
    """uint8 from one grid to another: x, multiplier float32[1] (ratio of scales), grid int32[2], out."""
    x = te.placeholder(shape, "uint8", "x")
    multiplier = te.placeholder((1,), "float32", "multiplier")
    grid = te.placeholder((2,), "int32", "grid")
    out = te.compute(
        shape, lambda *i: requantize(x(*i).astype("int32") - grid[0], bounded(multiplier[0]), grid[1]), "out"
    )
    return te.create_prim_func([x, multiplier, grid, out])


def quantize_tensor(shape: Shape) -> PrimFunc:
    """float32 → uint8: x, inverse scale float32[1], grid int32[2] (grid[1] is used), out."""
    x = te.placeholder(shape, "float32", "x")
    inverse = te.placeholder((1,), "float32", "inverse")
    grid = te.placeholder((2,), "int32", "grid")
    out = te.compute(shape, lambda *i: quantize(x(*i), inverse[0], grid[1]), "out")
    return te.create_prim_func([x, inverse, grid, out])


def dequantize_tensor(shape: Shape) -> PrimFunc:
    """uint8 → float32: x, scale float32[1], grid int32[2] (grid[0] is used), out."""
    x = te.placeholder(shape, "uint8", "x")
    scale = te.placeholder((1,), "float32", "scale")
    grid = te.placeholder((2,), "int32", "grid")
    out = te.compute(shape, lambda *i: dequantize(x(*i), scale[0], grid[0]), "out")
    return te.create_prim_func([x, scale, grid, out])


def to_pixels(shape: Shape, dtype: str) -> PrimFunc:
    """[N, C, H, W] → [N·H·W, C]: x, out."""
    n, c, h, w = shape
    x = te.placeholder(shape, dtype, "x")
    out = te.compute((n * h * w, c), lambda m, k: x[m // (h * w), k, m // w % h, m % w], "out")
    return te.create_prim_func([x, out])


def quantize_to_pixels(shape: Shape) -> PrimFunc:
    """float32 [N, C, H, W] → uint8 [N·H·W, C]: x, inverse scale float32[1], grid int32[2], out."""
    n, c, h, w = shape
    x = te.placeholder(shape, "float32", "x")
    inverse = te.placeholder((1,), "float32", "inverse")
    grid = te.placeholder((2,), "int32", "grid")
    out = te.compute(
        (n * h * w, c),
        lambda m, k: quantize(x[m // (h * w), k, m // w % h, m % w], inverse[0], grid[1]),
        "out",
    )
    return te.create_prim_func([x, inverse, grid, out])


def from_pixels(shape: Shape, dtype: str) -> PrimFunc:
    """[N·H·W, C] → [N, C, H, W] (``shape`` is the result's): x, out."""
    n, c, h, w = shape
    x = te.placeholder((n * h * w, c), dtype, "x")
    return te.create_prim_func(
        [x, te.compute(shape, lambda b, k, y, z: x[(b * h + y) * w + z, k], "out")]
    )  # fmt: skip
