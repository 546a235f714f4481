"""8-bit regions that are not worth their borders: connected operators among which nothing has weights.

A sum, a function or a pool alone among float operators (the scale and the mask of attention scores before a softmax)
would cost a quantization before it, a dequantization behind it and precision, and save nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax

from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import MOVING_KINDS

Calls = Sequence[tuple[relax.Var, relax.Function, relax.Call]]

ACCUMULATING_KINDS = frozenset({"conv2d", "depthwise_conv2d", "matmul", "conv2d_transpose"})
"""Kinds with weights, that can leave an 8-bit region from their accumulator, without an 8-bit output."""


def without_weights(calls: Calls, in_8_bits: set[relax.Var]) -> set[relax.Var]:
    """The members of ``in_8_bits`` whose region holds no operator with weights.

    A region is what is connected by tensors, operators that only move elements included.
    """
    kinds = {variable: attr.text(function, attr.KIND) for variable, function, _ in calls}
    inside = {v for v, kind in kinds.items() if kind in MOVING_KINDS or v in in_8_bits}
    parent = {variable: variable for variable in inside}

    def root(variable: relax.Var) -> relax.Var:
        while parent[variable] != variable:
            variable = parent[variable]
        return variable

    for variable, _, call in calls:
        for argument in call.args:
            if variable in inside and argument in inside:
                parent[root(argument)] = root(variable)
    weighted = {root(v) for v in inside if v in in_8_bits and kinds[v] in ACCUMULATING_KINDS}
    return {v for v in inside if v in in_8_bits and kinds[v] not in MOVING_KINDS and root(v) not in weighted}
