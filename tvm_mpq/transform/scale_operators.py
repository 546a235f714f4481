"""ScaleOperators: multiply the outputs of operators, inside their weights and biases."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from tvm_mpq.errors import MpqError
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import MOVING_KINDS, WEIGHTED_KINDS
from tvm_mpq.transform.change_biases import activated
from tvm_mpq.transform.operator_body import OperatorBody, read_body, shape_of

_MONOTONE_ENDS = frozenset({"softmax", "sigmoid"})


@tvm.transform.module_pass(opt_level=0, name="ScaleOperators")
class ScaleOperators:
    """Rewrite ``op_i: x·W + b`` → ``op_i: x·(m_i W) + m_i b``.

    ``factors`` are m > 0 of convolutions and matrix multiplications without an activation, by name. On the operator
    that makes a classifier's logits this is dividing them by a temperature 1 / m (Guo et al. 2017), for no bytes and no
    time.
    """

    def __init__(self, factors: Mapping[str, float]) -> None:
        self.factors = factors

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass; raises MpqError for a name that no operator has, or of one that cannot be scaled."""
        result = mod.clone()
        functions = {attr.text(f, attr.OPERATOR): (v, f) for v, f in mod.functions_items()}
        for name, factor in self.factors.items():
            if name not in functions or not scalable(functions[name][1]):
                raise MpqError(f"operator {name!r} cannot be scaled: it has no weights, or an activation")
            if not (math.isfinite(factor) and factor > 0.0):
                raise MpqError(f"operator {name!r} cannot be scaled by {factor}")
            variable, function = functions[name]
            channels = np.full(output_channels(function), factor, np.float32)
            result.update_func(variable, scaled(function, channels))
        return result


def scale_operators(mod: IRModule, factors: Mapping[str, float]) -> IRModule:
    """The module after :class:`ScaleOperators`."""
    return tvm.transform.Sequential([ScaleOperators(factors)])(mod)


def scalable(function: relax.Function) -> bool:
    """Whether an operator's output is linear in its weights and bias."""
    if attr.text(function, attr.KIND) not in WEIGHTED_KINDS:
        return False
    body = read_body(function)
    return (body.low, body.high) == (-math.inf, math.inf)


def output_operator(mod: IRModule) -> str | None:
    """The scalable operator that makes the network's first output, through moves, a softmax or a sigmoid; or None.

    Nothing else reads its output, nor is it another of the network's outputs.
    """
    end = _output_end(mod)
    return None if end is None else end[0]


def is_linear_output(mod: IRModule) -> bool:
    """Whether the network's first output is a multiple of that of :func:`output_operator`."""
    end = _output_end(mod)
    return end is not None and end[1]


def _output_end(mod: IRModule) -> tuple[str, bool] | None:
    """The output operator's name, and whether only moves follow it."""
    calls, results = attr.calls(mod), attr.results(mod)
    made = {variable: (function, call) for variable, function, call in calls}
    uses = Counter([*results, *(argument for _, _, call in calls for argument in call.args)])
    place, linear = results[0], True
    while place in made and uses[place] == 1:
        function, call = made[place]
        if scalable(function):
            return attr.text(function, attr.OPERATOR), linear
        kind = attr.text(function, attr.KIND)
        if kind not in MOVING_KINDS | _MONOTONE_ENDS:
            return None
        linear = linear and kind in MOVING_KINDS
        place = call.args[0]
    return None


def scaled(function: relax.Function, factor: npt.NDArray[np.float32]) -> relax.Function:
    """An operator with its weights and bias multiplied by ``factor`` [O], one a channel of its output."""
    body = read_body(function)
    assert body.weight is not None
    builder = relax.BlockBuilder()
    with builder.function("operator", list(function.params), attrs=dict(function.attrs), private=True):
        with builder.dataflow():
            weight = relax.const(_scaled_weight(function, body, factor))
            value = builder.emit(relax.Call(body.root.op, [body.root.args[0], weight], body.root.attrs))
            if body.bias is not None:
                bias = body.bias * factor
                shaped = bias if body.root.op.name == "relax.matmul" else bias.reshape(1, -1, 1, 1)
                value = builder.emit(relax.op.add(value, relax.const(shaped)))
            output = builder.emit_output(activated(builder, body, value))
        builder.emit_func_output(output)
    return builder.get()["operator"]


def output_channels(function: relax.Function) -> int:
    """How many channels the output of an operator with weights has."""
    shape, kind = shape_of(read_body(function).root), attr.text(function, attr.KIND)
    return shape[-1] if kind == "matmul" else shape[1]


def _scaled_weight(
    function: relax.Function, body: OperatorBody, factor: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    assert body.weight is not None
    kind = attr.text(function, attr.KIND)
    if kind == "matmul":
        return body.weight * factor
    if kind == "conv2d_transpose":
        # [C, K/groups, R, S], a group's input channels beside each other.
        groups = int(body.attributes.groups)
        parts = body.weight.reshape(groups, -1, *body.weight.shape[1:]) * factor.reshape(groups, 1, -1, 1, 1)
        return parts.reshape(body.weight.shape)
    return body.weight * factor[:, None, None, None]
