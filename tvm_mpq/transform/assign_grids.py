"""AssignGrids: decide where 8-bit regions begin and end, and give every tensor in them its one grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from tvm_mpq.precision import FP32, W8A8, Precision
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import MOVING_KINDS
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.regions import ACCUMULATING_KINDS, Calls, without_weights

_SAME_GRID_KINDS = MOVING_KINDS | {"max_pool2d", "resize_linear"}


@dataclass(frozen=True)
class TensorRanges:
    """The calibrated (low, high) of the network's inputs and of every operator's output, by name."""

    inputs: Mapping[str, tuple[float, float]]
    operators: Mapping[str, tuple[float, float]]


@tvm.transform.module_pass(opt_level=0, name="AssignGrids")
class AssignGrids:
    """Rewrite ``op_i {mpq.precision}`` → ``op_i {…, mpq.stored, mpq.scale, mpq.zero_point}``; bodies are untouched.

    A tensor is stored in uint8 where an operator in 8 bits makes it and another reads it, through operators that
    only move elements. A convolution or matrix multiplication that no 8-bit operator reads stores float straight from
    its accumulator. An 8-bit region without either runs in float after all (``transform.regions``). A tensor stored in
    float that an 8-bit operator reads has a grid all the same: the edge quantizes it. Max pooling, resizing
    and what moves elements keep their input's grid.
    """

    def __init__(self, ranges: TensorRanges) -> None:
        self.ranges = ranges

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass."""
        calls = attr.calls(mod)
        precisions = {v: attr.executed(function) for v, function, _ in calls}
        alone = without_weights(calls, {v for v, each in precisions.items() if each.integer_activations})
        precisions |= dict.fromkeys(alone, FP32)
        needed = _read_in_8_bits(calls, precisions)
        grids: dict[relax.Var, Grid] = {}
        stored: dict[relax.Var, str] = {}
        input_grids = {}
        main = mod["main"]
        for name, parameter in zip(attr.names(main, attr.INPUTS), main.params, strict=True):
            stored[parameter] = "float32"
            if parameter in needed:
                grids[parameter] = Grid.from_range(*self.ranges.inputs[name])
                input_grids[name] = [grids[parameter].scale, grids[parameter].zero_point]

        result = mod.clone()
        for variable, function, call in calls:
            kind, precision = attr.text(function, attr.KIND), precisions[variable]
            source = call.args[0] if call.args else None
            if kind in MOVING_KINDS:
                stored[variable] = stored.get(source, "float32")
                precision = _moved(attr.asked(function), stored[variable])
            elif precision.integer_activations and (kind not in ACCUMULATING_KINDS or variable in needed):
                stored[variable] = "uint8"
            else:
                stored[variable] = "float32"
            attributes: dict[str, object] = {attr.STORED: stored[variable], attr.PRECISION: str(precision)}
            if precision != attr.asked(function) and not attr.text(function, attr.REASON):
                attributes[attr.REASON] = (
                    "no convolution or matrix multiplication shares its 8-bit region"
                    if variable in alone
                    else "moves its input, which is stored in " + stored[variable]
                )
            if stored[variable] == "uint8" or variable in needed:
                same = kind in _SAME_GRID_KINDS and precision.integer_activations
                grid = grids[source] if same else self._own_grid(function)
                grids[variable] = grid
                attributes |= {attr.SCALE: grid.scale, attr.ZERO_POINT: grid.zero_point}
            result.update_func(call.op, function.with_attrs(attributes))
        result.update_func(
            mod.get_global_var("main"), main.with_attr(attr.INPUT_GRIDS, json.dumps(input_grids))
        )
        return result

    def _own_grid(self, function: relax.Function) -> Grid:
        """The grid of the observed range, inside the operator's activation: saturation then is the clip.

        Only a tensor that was never seen to leave zero could have a wider one: its grid reaches to 1 or to the bound.
        """
        low, high = self.ranges.operators[attr.text(function, attr.OPERATOR)]
        if low == high == 0.0:
            high = min(1.0, max(read_body(function).high, 0.0))
        return Grid.from_range(low, high)


def _moved(asked: Precision, stored: str) -> Precision:
    """What an operator that only moves elements stored in ``stored`` is executed in: as asked where that is it."""
    if asked.integer_activations:
        return asked if stored == "uint8" else FP32
    return W8A8 if stored == "uint8" else FP32


def _read_in_8_bits(calls: Calls, precisions: dict[relax.Var, Precision]) -> set[relax.Var]:
    """The tensors that some operator in 8 bits reads, looking through operators that only move elements."""
    needed: set[relax.Var] = set()
    for variable, function, call in reversed(calls):
        moves = attr.text(function, attr.KIND) in MOVING_KINDS
        if variable in needed if moves else precisions[variable].integer_activations:
            needed.update(argument for argument in call.args if isinstance(argument, relax.Var))
    return needed
