"""What a cost table needs to know of a network: who reads whom, and what a plan makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm import IRModule, relax

from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import MOVING_KINDS
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline
from tvm_mpq.transform.regions import ACCUMULATING_KINDS

_RANGE = (-3.0, 3.0)


def placeholder_ranges(mod: IRModule) -> TensorRanges:
    """Ranges that no sample was needed for: codes then mean nothing, and kernels take the time they always take."""
    inputs, _ = io_specs(mod)
    return TensorRanges(
        {spec.name: _RANGE for spec in inputs}, {operator.name: _RANGE for operator in operators(mod)}
    )


def roots(mod: IRModule) -> dict[str, str]:
    """Each operator's name, and for one that only moves elements the name of whose result it moves ("" for an input's).

    A tensor keeps its dtype through moves: boundaries lie between what computes.
    """
    made: dict[relax.Var, str] = {}
    found: dict[str, str] = {}
    for variable, function, call in attr.calls(mod):
        name = attr.text(function, attr.OPERATOR)
        moves = attr.text(function, attr.KIND) in MOVING_KINDS
        made[variable] = made.get(call.args[0], "") if moves else name
        found[name] = made[variable]
    return found


def edges(mod: IRModule) -> tuple[tuple[str, str], ...]:
    """(producer, reader) of every pair of operators that compute, moves between them left out, in order."""
    root = roots(mod)
    made: dict[relax.Var, str] = {}
    found: dict[tuple[str, str], None] = {}
    for variable, function, call in attr.calls(mod):
        name = attr.text(function, attr.OPERATOR)
        made[variable] = root[name]
        if attr.text(function, attr.KIND) not in MOVING_KINDS:
            for argument in call.args:
                producer = made.get(argument, "")
                if producer:
                    found[producer, name] = None
    return tuple(found)


def executed_plan(mod: IRModule, plan: PrecisionPlan) -> PrecisionPlan:
    """What each operator is executed in under ``plan``: kinds without a kernel and lonely regions stay in float."""
    pipeline = Pipeline(plan, placeholder_ranges(mod), "")
    annotated = pipeline.annotate(mod)
    return PrecisionPlan({attr.text(f, attr.OPERATOR): attr.executed(f) for _, f, _ in attr.calls(annotated)})


def alternating_plans(mod: IRModule, precision: Precision) -> Iterator[PrecisionPlan]:
    """Two plans in which every other operator with weights is in float, and the rest follow what they read first.

    Between them nearly every tensor is converted from ``precision`` to float and back.
    """
    for parity in (0, 1):
        chosen: dict[str, Precision] = {}
        made: dict[relax.Var, Precision] = {}
        count = 0
        for variable, function, call in attr.calls(mod):
            if attr.text(function, attr.KIND) in ACCUMULATING_KINDS:
                made[variable] = precision if count % 2 == parity else FP32
                count += 1
            else:
                made[variable] = made.get(call.args[0], FP32) if call.args else FP32
            chosen[attr.text(function, attr.OPERATOR)] = made[variable]
        yield PrecisionPlan(chosen)


def uniform_plans(mod: IRModule, precisions: Sequence[Precision]) -> Iterator[PrecisionPlan]:
    """One plan for each precision."""
    names = [operator.name for operator in operators(mod)]
    for precision in precisions:
        yield PrecisionPlan.uniform(names, precision)
