"""ChangeWeights: put other float weights into operators, before anything is lowered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from tvm_mpq.errors import MpqError
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import WEIGHTED_KINDS
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.substitute import substituted


@tvm.transform.module_pass(opt_level=0, name="ChangeWeights")
class ChangeWeights:
    """Rewrite ``op_i: root(x, w)`` → ``op_i: root(x, weights[i])``.

    ``weights`` has the shape of w for each operator named, which are operators with weights of the canonical or
    annotated module.
    """

    def __init__(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        self.weights = weights

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass; raises KeyError for a name that no operator has."""
        result = mod.clone()
        functions = {attr.text(f, attr.OPERATOR): (v, f) for v, f in mod.functions_items()}
        for name, weight in self.weights.items():
            variable, function = functions[name]
            result.update_func(variable, _changed(function, np.ascontiguousarray(weight, np.float32)))
        return result


def dequantized(mod: IRModule, weights: Mapping[str, QuantizedWeights]) -> ChangeWeights:
    """The pass that puts what integer ``weights`` of operators of ``mod`` stand for in their place.

    Raises MpqError for a transposed convolution, whose integer weights are those of its phases, for a name that no
    operator with weights has, and for weights of another shape.
    """
    functions = {attr.text(function, attr.OPERATOR): function for _, function, _ in attr.calls(mod)}
    found = {}
    for name, given in weights.items():
        kind = attr.text(functions[name], attr.KIND) if name in functions else ""
        if kind not in WEIGHTED_KINDS or kind == "conv2d_transpose":
            raise MpqError(
                f"{name!r} is no convolution or matrix multiplication that integer weights can be put in"
            )
        found[name] = given.real[:, :, 0, 0].T if kind == "matmul" else given.real
        held = read_body(functions[name]).weight
        if held is None or held.shape != found[name].shape:
            raise MpqError(f"the weights given for {name!r} do not have the shape of its own")
    return ChangeWeights(found)


def _changed(function: relax.Function, weight: npt.NDArray[np.float32]) -> relax.Function:
    body = read_body(function)
    assert body.weight is not None
    assert body.weight.shape == weight.shape
    return substituted(function, {body.root.args[1]: relax.const(weight)})
