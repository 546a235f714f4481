"""The attributes that passes read and write on operator functions: one place for their names."""

from __future__ import annotations

import json

from tvm import IRModule, relax
from tvm.tirx import PrimFunc

from tvm_mpq.precision import Precision
from tvm_mpq.quantization.grid import Grid

OPERATOR = "mpq.operator"
"""The ONNX node's name."""
KIND = "mpq.kind"
ASKED = "mpq.asked"
"""The precision the plan names."""
PRECISION = "mpq.precision"
"""The precision the operator is executed in."""
REASON = "mpq.reason"
"""Why executed differs from asked."""
SCALE = "mpq.scale"
ZERO_POINT = "mpq.zero_point"
"""The grid of the operator's output tensor, present where it is stored or read in 8 bits."""
STORED = "mpq.stored"
"""The dtype the operator's output tensor is stored in: uint8 or float32."""
INPUTS = "mpq.inputs"
"""On ``main``: the network's input names."""
INPUT_GRIDS = "mpq.input_grids"
"""On ``main``: the grids of inputs that are read in 8 bits, JSON {name: [scale, zero-point]}."""

OWNERS = "mpq.owners"
"""On a lowered ``main``: whose each binding is, JSON {variable: [role, operator, operator that reads it]}."""

TILE = "mpq.tile"
"""On a scheduled kernel of a template: whether its tile is ``tuned`` or ``default``."""


def calls(mod: IRModule) -> list[tuple[relax.Var, relax.Function, relax.Call]]:
    """(result, operator function, call) of every operator of ``main``, in order."""
    result = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and isinstance(call.op, relax.GlobalVar):
                function = mod[call.op]
                if isinstance(function, relax.Function):
                    result.append((binding.var, function, call))
    return result


def text(function: relax.Function | PrimFunc, name: str) -> str:
    """The attribute as text; empty where it is absent."""
    return str(function.attrs[name]) if function.attrs is not None and name in function.attrs else ""


def asked(function: relax.Function) -> Precision:
    """The precision that the plan names for an annotated operator."""
    return Precision.parse(text(function, ASKED))


def executed(function: relax.Function) -> Precision:
    """The precision that an annotated operator is executed in."""
    return Precision.parse(text(function, PRECISION))


def names(function: relax.Function, name: str) -> list[str]:
    """The attribute as a list of names."""
    return [str(value) for value in function.attrs[name]]


def results(mod: IRModule) -> list[relax.Var]:
    """The variables of ``main``'s operators that are the network's outputs, in order."""
    bound = {}
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            bound[binding.var] = binding.value
    value = mod["main"].body.body
    while isinstance(bound.get(value), (relax.Var, relax.Tuple)):
        value = bound[value]
    return list(value.fields) if isinstance(value, relax.Tuple) else [value]


def input_grids(main: relax.Function) -> dict[str, Grid]:
    """The grids of the inputs that are read in 8 bits."""
    raw = json.loads(text(main, INPUT_GRIDS) or "{}")
    return {name: Grid(scale, zero) for name, (scale, zero) in raw.items()}
