"""Functions of each element: of one tensor by table or in float, and of two tensors that broadcast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import te, tirx
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.convolution import Output, activate
from tvm_mpq.kernels.elementwise import Shape
from tvm_mpq.kernels.mathematics import evaluate
from tvm_mpq.kernels.requantize import requantize
from tvm_mpq.kernels.schedule_default import SCALAR
from tvm_mpq.pointwise import Pointwise


def table_lookup(shape: Shape) -> PrimFunc:
    """uint8 → uint8: x, table uint8[256], out."""
    x = te.placeholder(shape, "uint8", "x")
    table = te.placeholder((256,), "uint8", "table")
    out = te.compute(shape, lambda *i: table[x(*i).astype("int32")], "out")
    return te.create_prim_func([x, table, out]).with_attr(SCALAR, True)


def pointwise(shape: Shape, function: Pointwise) -> PrimFunc:
    """float32: x, out."""
    x = te.placeholder(shape, "float32", "x")

    def element(*i: Expr) -> Expr:
        return function.apply(x(*i), evaluate, lambda value: tirx.const(value, "float32"))

    return te.create_prim_func([x, te.compute(shape, element, "out")])


@dataclass(frozen=True)
class Broadcast:
    """Two tensors of one rank and the one they broadcast to, by their ONNX shapes; rank 4 is held as pixels."""

    left: Shape
    right: Shape
    out: Shape

    def form(self, shape: Shape) -> Shape:
        """The shape a tensor is held in: [N·H·W, C] for rank 4."""
        if len(shape) != 4:
            return shape
        n, c, h, w = shape
        return n * h * w, c

    def at(self, tensor: te.Tensor, shape: Shape, indices: Sequence[Expr]) -> Expr:
        """The element of ``tensor``, of ONNX shape ``shape``, that belongs to the result's ``indices``."""
        if len(shape) != 4:
            return tensor(*(i if extent > 1 else 0 for i, extent in zip(indices, shape, strict=True)))
        n, c, h, w = shape
        (_, _, height, width), (m, k) = self.out, indices
        row: Expr | int = m
        if (n, h, w) != (self.out[0], height, width):
            row = 0
            position = (m // (height * width), m // width % height, m % width)
            for index, extent in zip(position, (n, h, w), strict=True):
                row = row * extent + index if extent > 1 else row
        return tensor[row, k if c > 1 else 0]


_FLOAT: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


def binary(operation: str, shapes: Broadcast, out: Output) -> PrimFunc:
    """float32 ``add``, ``sub`` or ``mul``: a, b, out."""
    a, b = _operands(shapes, "float32")

    def element(*i: Expr) -> Expr:
        values = shapes.at(a, shapes.left, i), shapes.at(b, shapes.right, i)
        return activate(_FLOAT[operation](*values), out)

    return te.create_prim_func([a, b, te.compute(shapes.form(shapes.out), element, "out")])


def quantized_sum(shapes: Broadcast) -> PrimFunc:
    """uint8 sum, or difference with a negative factor.

    a, b, factors int32[3], multiplier float32[1], grid int32[2], out; see :func:`tvm_mpq.kernels.elementwise.add`.
    """
    a, b = _operands(shapes, "uint8")
    factors = te.placeholder((3,), "int32", "factors")
    multiplier = te.placeholder((1,), "float32", "multiplier")
    grid = te.placeholder((2,), "int32", "grid")

    def element(*i: Expr) -> Expr:
        first = shapes.at(a, shapes.left, i).astype("int32") * factors[0]
        second = shapes.at(b, shapes.right, i).astype("int32") * factors[1]
        return requantize(first + second + factors[2], multiplier[0], grid[1])

    out = te.compute(shapes.form(shapes.out), element, "out")
    return te.create_prim_func([a, b, factors, multiplier, grid, out])


def quantized_product(shapes: Broadcast) -> PrimFunc:
    """uint8 product: a, b, multiplier float32[1], zeros int32[3], out.

    ``out = requantize((a − zeros[0]) · (b − zeros[1]))`` with multiplier s_a · s_b / s_out and zero-point zeros[2].
    """
    a, b = _operands(shapes, "uint8")
    multiplier = te.placeholder((1,), "float32", "multiplier")
    zeros = te.placeholder((3,), "int32", "zeros")

    def element(*i: Expr) -> Expr:
        first = shapes.at(a, shapes.left, i).astype("int32") - zeros[0]
        second = shapes.at(b, shapes.right, i).astype("int32") - zeros[1]
        # Beyond 2^14 any product but 0 saturates all the same; a larger one would leave int32.
        return requantize(first * second, te.min(multiplier[0], tirx.const(2.0**14, "float32")), zeros[2])

    out = te.compute(shapes.form(shapes.out), element, "out")
    return te.create_prim_func([a, b, multiplier, zeros, out])


def _operands(shapes: Broadcast, dtype: str) -> tuple[te.Tensor, te.Tensor]:
    left, right = shapes.form(shapes.left), shapes.form(shapes.right)
    return te.placeholder(left, dtype, "a"), te.placeholder(right, dtype, "b")
