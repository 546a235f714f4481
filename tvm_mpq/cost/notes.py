"""What a modelled cost table says about a plan, in words: why a search chose so for a machine that is not here."""

from __future__ import annotations

from tvm_mpq.cost.table import MODELLED, CostTable, OperatorCost
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, Precision

_NAMED = 4
"""Operators named as examples."""
_CLEARLY = 1.03
"""A time is longer than another from here on."""


def latency_notes(table: CostTable, plan: PrecisionPlan) -> tuple[str, ...]:
    """Lines on the precisions of ``table`` as a whole, and on the operators whose fastest precision is not 8 bits.

    Nothing for a table that was measured.
    """
    if table.kind != MODELLED:
        return ()
    names = [operator.name for operator in table.operators]
    whole = table.predict(PrecisionPlan.uniform(names, FP32))
    shares = ", ".join(
        f"{name} × {table.predict(PrecisionPlan.uniform(names, Precision.parse(name))) / whole:.2f}"
        for name in table.precisions
        if name != str(FP32)
    )
    notes = [
        f"The model of {table.target}, each kernel at its roof: all operators alike take of fp32's time {shares}."
    ]
    weighted = [operator for operator in table.operators if _differs(operator)]
    floats = [name for name in table.precisions if not Precision.parse(name).integer_activations]
    eights = [name for name in table.precisions if Precision.parse(name).integer_activations]
    slower = [o.name for o in weighted if eights and _CLEARLY * _least(o, floats) < _least(o, eights)]
    notes += _listed("faster there in float than in any 8-bit form", slower)
    narrow = [name for name in eights if Precision.parse(name).weight_bits < 8]
    if "w8a8" in eights and narrow:
        gaining = [o.name for o in weighted if _CLEARLY * _least(o, narrow) < o.seconds["w8a8"]]
        notes += _listed("faster there with fewer weight bits than 8, as reading them takes longest", gaining)
        losing = [o.name for o in weighted if _CLEARLY * o.seconds["w8a8"] < _least(o, narrow)]
        notes += _listed("slower there with fewer weight bits than 8", losing)
    late = [o.name for o in weighted if _CLEARLY * min(o.seconds.values()) < o.seconds[str(plan[o.name])]]
    return (*notes, *_listed("not in their fastest precision, for the loss or a limit", late))


def _differs(operator: OperatorCost) -> bool:
    """Whether precisions change what the operator takes: one with weights, in general."""
    seconds = operator.seconds.values()
    return min(seconds) > 0.0 and max(seconds) > _CLEARLY * min(seconds)


def _least(operator: OperatorCost, names: list[str]) -> float:
    return min((operator.seconds[name] for name in names), default=float("inf"))


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{len(names)} operators are {what}: {', '.join(names[:_NAMED])}{more}."]
