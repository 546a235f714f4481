"""Gradients of matrix multiplications by constants and of selections by constant indices."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.relax import op
from tvm.relax.op import _op_gradient
from tvm.relax.op.grad import no_grad

from tvm_mpq.transform.operator_body import shape_of


def matmul_gradient(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """TVM's own rule, with a constant matrix transposed now, so that a templated kernel can multiply by it."""
    a, b = call.args
    if isinstance(b, GenericConst) and len(shape_of(b)) == 2 and len(shape_of(a)) >= 2:
        transposed = np.ascontiguousarray(b.value.numpy().T)
        return [op.matmul(adjoint, relax.const(transposed)), no_grad(b)]
    return list(_op_gradient.matmul_grad(result, call, adjoint, builder))


def take_gradient(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """Slices at constant indices of one axis: for each slice the sum of the adjoints of where it went.

    TVM's own rule scatters one element after the other.
    """
    x, indices = call.args
    axis = call.attrs.axis
    if not isinstance(indices, GenericConst) or len(shape_of(indices)) != 1 or axis is None:
        return list(_op_gradient.take_grad(result, call, adjoint, builder))
    axis = int(axis) % len(shape_of(x))
    count = shape_of(indices)[0]
    places = taken_to(indices.value.numpy(), shape_of(x)[axis])
    if (places == count).any():
        one = [1 if at == axis else extent for at, extent in enumerate(shape_of(x))]
        adjoint = builder.emit(op.concat([adjoint, relax.const(np.zeros(one, np.float32))], axis))
    total: relax.Expr | None = None
    for row in places:
        term = builder.emit(op.take(adjoint, relax.const(row.astype(np.int32)), axis, "clip"))
        total = term if total is None else builder.emit(op.add(total, term))
    assert total is not None
    return [total, no_grad(indices)]


def taken_to(indices: np.ndarray, size: int) -> np.ndarray:
    """[k, size]: the positions in ``indices`` [n] that hold each of 0 … size − 1; n where there are fewer than k."""
    order = np.argsort(indices, kind="stable")
    counts = np.bincount(indices, minlength=size)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = np.arange(max(1, int(counts.max(initial=0))))[:, None]
    at = np.minimum(starts + rows, max(len(indices) - 1, 0))
    return np.where(rows < counts, order[at], len(indices))
