"""Functions of each element: of one tensor by table or in float, and of two tensors that broadcast."""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.convolution import Output, activate
from tvm_mpq.kernels.elementwise import Shape, bounded
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


def _broadcast(tensor: te.Tensor, indices: tuple[Expr, ...]) -> Expr:
    """The element of ``tensor`` that NumPy's broadcasting puts at ``indices``; its last axes are the result's last."""
    aligned = indices[len(indices) - len(tensor.shape) :]
    return tensor(
        *(tirx.const(0, "int32") if int(n) == 1 else i for n, i in zip(tensor.shape, aligned, strict=True))
    )


_FLOAT: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


def binary(operation: str, left: Shape, right: Shape, shape: Shape, out: Output) -> PrimFunc:
    """float32 ``add``, ``sub`` or ``mul`` of tensors that broadcast to ``shape``: a, b, out."""
    a, b = te.placeholder(left, "float32", "a"), te.placeholder(right, "float32", "b")

    def element(*i: Expr) -> Expr:
        return activate(_FLOAT[operation](_broadcast(a, i), _broadcast(b, i)), out)

    return te.create_prim_func([a, b, te.compute(shape, element, "out")])


def quantized_sum(left: Shape, right: Shape, shape: Shape) -> PrimFunc:
    """uint8 sum (or difference: a negative factor) of tensors that broadcast to ``shape``.

    a, b, factors int32[3], multiplier float32[1], grid int32[2], out as :func:`tvm_mpq.kernels.elementwise.add`.
    """
    a, b = te.placeholder(left, "uint8", "a"), te.placeholder(right, "uint8", "b")
    factors = te.placeholder((3,), "int32", "factors")
    multiplier = te.placeholder((1,), "float32", "multiplier")
    grid = te.placeholder((2,), "int32", "grid")

    def element(*i: Expr) -> Expr:
        first, second = (_broadcast(tensor, i).astype("int32") for tensor in (a, b))
        return requantize(first * factors[0] + second * factors[1] + factors[2], multiplier[0], grid[1])

    return te.create_prim_func([a, b, factors, multiplier, grid, te.compute(shape, element, "out")])


def quantized_product(left: Shape, right: Shape, shape: Shape) -> PrimFunc:
    """uint8 product of tensors that broadcast to ``shape``: a, b, multiplier float32[1], zeros int32[3], out.

    ``out = requantize((a − zeros[0]) · (b − zeros[1]))`` with multiplier s_a · s_b / s_out and zero-point zeros[2].
    """
    a, b = te.placeholder(left, "uint8", "a"), te.placeholder(right, "uint8", "b")
    multiplier = te.placeholder((1,), "float32", "multiplier")
    zeros = te.placeholder((3,), "int32", "zeros")

    def element(*i: Expr) -> Expr:
        first, second = (
            _broadcast(tensor, i).astype("int32") - zeros[place] for place, tensor in enumerate((a, b))
        )
        return requantize(first * second, bounded(multiplier[0]), zeros[2])

    return te.create_prim_func([a, b, multiplier, zeros, te.compute(shape, element, "out")])
