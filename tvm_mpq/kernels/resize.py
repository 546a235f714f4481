"""Resizing pixels by tables of source rows and columns, and of weights between them."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.requantize import requantize
from tvm_mpq.kernels.schedule_default import ROWS

WEIGHT_BITS = 10
"""A weight of an axis in 8 bits is a multiple of 2^-10: products of two with a code stay below 2^31."""


@dataclass(frozen=True)
class Resize:
    """[batch, height, width, channels] → [batch, out_height, out_width, channels]."""

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int

    @property
    def rows(self) -> int:
        """Pixels of the result."""
        return self.batch * self.out_height * self.out_width

    def position(self, m: Expr) -> tuple[Expr, Expr, Expr]:
        """Batch, row and column of pixel ``m`` of the result."""
        area = self.out_height * self.out_width
        return m // area, m // self.out_width % self.out_height, m % self.out_width

    def input(self, dtype: str) -> te.Tensor:
        """The tensor of pixels that is resized."""
        return te.placeholder((self.batch * self.height * self.width, self.channels), dtype, "x")

    def marked(self, function: PrimFunc) -> PrimFunc:
        """``function`` with what its rows stand for."""
        return function.with_attr(ROWS, [self.batch, self.out_height, self.out_width])


def resize_nearest(shape: Resize, dtype: str) -> PrimFunc:
    """x, rows int32[out_height], columns int32[out_width], out."""
    x = shape.input(dtype)
    rows = te.placeholder((shape.out_height,), "int32", "rows")
    columns = te.placeholder((shape.out_width,), "int32", "columns")

    def element(m: Expr, c: Expr) -> Expr:
        n, h, w = shape.position(m)
        return x[(n * shape.height + rows[h]) * shape.width + columns[w], c]

    out = te.compute((shape.rows, shape.channels), element, "out")
    return shape.marked(te.create_prim_func([x, rows, columns, out]))


def resize_linear(shape: Resize, dtype: str) -> PrimFunc:
    """Between two rows and two columns: x, rows int32[2, out_height], columns int32[2, out_width], weights, out.

    Weights, of the second row [out_height] and column [out_width]: float32, or int32 of 2^-10 for uint8, which have
    int32[1] of their zero-point as well, before ``out``. The grid stays.
    """
    x = shape.input(dtype)
    integer = dtype == "uint8"
    rows = te.placeholder((2, shape.out_height), "int32", "rows")
    columns = te.placeholder((2, shape.out_width), "int32", "columns")
    kind = "int32" if integer else "float32"
    down = te.placeholder((shape.out_height,), kind, "down")
    right = te.placeholder((shape.out_width,), kind, "right")
    zero = te.placeholder((1,), "int32", "zero")
    whole = tirx.const(2**WEIGHT_BITS if integer else 1, kind)

    def element(m: Expr, c: Expr) -> Expr:
        n, h, w = shape.position(m)

        def at(row: int, column: int) -> Expr:
            value = x[(n * shape.height + rows[row, h]) * shape.width + columns[column, w], c]
            return value.astype("int32") - zero[0] if integer else value

        first, second = (at(row, 0) * (whole - right[w]) + at(row, 1) * right[w] for row in (0, 1))
        value = first * (whole - down[h]) + second * down[h]
        return (
            requantize(value, tirx.const(2.0 ** (-2 * WEIGHT_BITS), "float32"), zero[0]) if integer else value
        )

    out = te.compute((shape.rows, shape.channels), element, "out")
    return shape.marked(
        te.create_prim_func([x, rows, columns, down, right, *([zero] if integer else []), out])
    )
