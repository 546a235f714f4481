"""Read an operator function's body back: the root call, its constants and its activation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.ir.expr import GenericConst

from tvm_mpq.pointwise import Pointwise


@dataclass(frozen=True)
class OperatorBody:
    """``root`` [+ ``bias``] [clipped to ``low`` … ``high``]; ``weight`` is the root's constant in ONNX's order."""

    root: relax.Call
    weight: npt.NDArray[np.float32] | None
    bias: npt.NDArray[np.float32] | None
    low: float
    high: float

    @property
    def attributes(self) -> Any:
        """The attributes of the root call."""
        return self.root.attrs


def read_body(function: relax.Function) -> OperatorBody:
    """The parts of a canonical operator (see docs/architecture.md)."""
    chain = [binding.value for block in function.body.blocks for binding in block.bindings]
    calls = [value for value in chain if isinstance(value, relax.Call)]
    root = calls[0]
    low, high = bounds(root)
    weight = bias = None
    if len(root.args) > 1 and isinstance(root.args[1], GenericConst):
        weight = root.args[1].value.numpy()
    for call in calls[1:]:
        if call.op.name == "relax.add" and isinstance(call.args[1], GenericConst):
            bias = call.args[1].value.numpy().reshape(-1)
        else:
            below, above = bounds(call)
            low, high = max(low, below), min(high, above)
    return OperatorBody(root, weight, bias, low, high)


def read_pointwise(function: relax.Function) -> Pointwise:
    """The function of one element that a ``pointwise``, ``sigmoid`` or lone ``activation`` computes."""
    places: dict[relax.Var, int] = {function.params[0]: 0}
    result = Pointwise()
    for block in function.body.blocks:
        for binding in block.bindings:
            call = binding.value
            if not isinstance(call, relax.Call):
                places[binding.var] = places[call]
                continue
            low, high = bounds(call)
            if call.op.name in ("relax.nn.relu", "relax.clip"):
                source: int | float = places[call.args[0]]
                for bound, operation in ((low, "maximum"), (high, "minimum")):
                    if math.isfinite(bound):
                        result = Pointwise((*result.steps, (operation, (source, bound))))
                        source = len(result.steps)
            else:
                arguments = tuple(
                    places[a] if isinstance(a, relax.Var) else float(a.value.numpy()) for a in call.args
                )
                step = (call.op.name.removeprefix("relax."), arguments)
                result = Pointwise((*result.steps, step))
            places[binding.var] = len(result.steps)
    return result


def bounds(call: relax.Call) -> tuple[float, float]:
    """What a relu or clip limits its result to; infinite for any other call."""
    if call.op.name == "relax.nn.relu":
        return 0.0, math.inf
    if call.op.name == "relax.clip":
        return tuple(_number(value) for value in call.args[1:3])  # type: ignore[return-value]
    return -math.inf, math.inf


def _number(value: Any) -> float:
    return float(getattr(value.value, "value", value.value))


def shape_of(expression: relax.Expr) -> tuple[int, ...]:
    """The constant shape of a tensor."""
    return tuple(int(extent) for extent in expression.ty.shape)
