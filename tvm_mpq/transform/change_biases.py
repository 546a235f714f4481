"""ChangeBiases: add to the biases of operators, as bias correction asks, before anything is lowered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.operator_body import OperatorBody, read_body

Biases = Mapping[str, npt.NDArray[Any]]


@tvm.transform.module_pass(opt_level=0, name="ChangeBiases")
class ChangeBiases:
    """Rewrite ``op_i: activation(root + b)`` → ``op_i: activation(root + (b + changes[i]))``, b being 0 where absent.

    ``changes`` is float [O] for each operator named, which are convolutions and matrix multiplications of the canonical
    or annotated module.
    """

    def __init__(self, changes: Biases) -> None:
        self.changes = changes

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass; raises KeyError for a name that no operator has."""
        result = mod.clone()
        functions = {attr.text(f, attr.OPERATOR): (v, f) for v, f in mod.functions_items()}
        for name, change in self.changes.items():
            variable, function = functions[name]
            result.update_func(variable, _changed(function, np.asarray(change, np.float32)))
        return result


def _changed(function: relax.Function, change: npt.NDArray[np.float32]) -> relax.Function:
    body = read_body(function)
    bias = change if body.bias is None else body.bias.astype(np.float32) + change
    shaped = bias if body.root.op.name == "relax.matmul" else bias.reshape(1, -1, 1, 1)
    builder = relax.BlockBuilder()
    with builder.function("operator", list(function.params), attrs=dict(function.attrs), private=True):
        with builder.dataflow():
            root = builder.emit(body.root)
            output = builder.emit_output(activated(builder, body, relax.op.add(root, relax.const(shaped))))
        builder.emit_func_output(output)
    return builder.get()["operator"]


def activated(builder: relax.BlockBuilder, body: OperatorBody, value: relax.Expr) -> relax.Expr:
    """The activation of ``body`` on ``value``, emitted into the function that ``builder`` builds."""
    if (body.low, body.high) == (-math.inf, math.inf):
        return value
    source = builder.emit(value)
    if (body.low, body.high) == (0.0, math.inf):
        return relax.op.nn.relu(source)
    return relax.op.clip(source, body.low, body.high)
