"""From the times of kernels under a few plans to the cost of operators and boundaries.

Uniform plans give every operator's seconds at each precision. Plans that alternate give what a change of dtype costs:
of a tensor made in 8 bits and read in float, its conversion and what its producer's kernel takes more when it leaves
as a float; of one made in float and read in 8 bits, its quantization. Tensors that no plan converted get the cost of a
straight line through those that were, by their bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvm_mpq.cost.table import BoundaryCost, OperatorCost
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.runtime.metadata import KernelCall


@dataclass(frozen=True)
class TimedPlan:
    """A plan's kernel calls with their seconds, and what each operator was asked and is executed in, by name."""

    asked: Mapping[str, str]
    executed: Mapping[str, str]
    calls: Sequence[KernelCall]
    seconds: Sequence[float]


def assemble(
    kinds: Mapping[str, str],
    roots: Mapping[str, str],
    edges: Sequence[tuple[str, str]],
    uniform: Mapping[str, TimedPlan],
    others: Sequence[TimedPlan],
) -> tuple[tuple[OperatorCost, ...], tuple[BoundaryCost, ...]]:
    """Costs of the operators ``kinds`` (name → kind) and the boundaries ``edges``.

    ``uniform`` are the plans of one precision each, fp32 among them; ``roots`` and ``edges`` are those of
    :mod:`tvm_mpq.cost.network`.
    """
    own = {precision: _operator_seconds(plan, roots) for precision, plan in uniform.items()}
    operators = []
    for name, kind in kinds.items():
        executed = {precision: plan.executed[name] for precision, plan in uniform.items()}
        seconds = {
            # What runs in float because it must, costs what it costs in a network of floats.
            precision: own[str(FP32) if executed[precision] == str(FP32) else precision].get(name, 0.0)
            for precision in uniform
        }
        operators.append(OperatorCost(name, kind, executed, seconds))

    producers = dict.fromkeys(producer for producer, _ in edges)
    plans = [*uniform.values(), *others]
    outputs = {name: _output_bytes(plans, name) for name in producers}
    to_float = _completed({name: _leaving(plans, own, roots, edges, name) for name in producers}, outputs)
    to_integer = _completed({name: _quantizing(plans, roots, name) for name in producers}, outputs)
    return tuple(operators), tuple(
        BoundaryCost(producer, reader, to_float[producer], to_integer[producer]) for producer, reader in edges
    )


def _operator_seconds(plan: TimedPlan, roots: Mapping[str, str]) -> dict[str, float]:
    """Seconds of each operator's own kernels, layout changes it asks for, and conversions at the network's ends."""
    found: dict[str, float] = {}
    for call, seconds in zip(plan.calls, plan.seconds, strict=True):
        owner = _owner(call, roots)
        if owner:
            found[owner] = found.get(owner, 0.0) + seconds
    return found


def _owner(call: KernelCall, roots: Mapping[str, str]) -> str:
    """The operator that a kernel's time is counted with; "" for a conversion between two."""
    if call.role == "operator":
        return call.operator
    if not call.reader:
        return call.operator if call.operator in roots else ""
    inside = bool(roots.get(call.operator))
    return "" if inside and call.role != "layout" else call.reader


def _conversions(plan: TimedPlan, roots: Mapping[str, str], role: str, producer: str) -> list[float]:
    return [
        seconds
        for call, seconds in zip(plan.calls, plan.seconds, strict=True)
        if call.role == role and roots.get(call.operator) == producer and not _owner(call, roots)
    ]


def _leaving(
    plans: Sequence[TimedPlan],
    own: Mapping[str, Mapping[str, float]],
    roots: Mapping[str, str],
    edges: Sequence[tuple[str, str]],
    producer: str,
) -> float | None:
    """Median over plans of what ``producer`` in 8 bits costs more because something reads it in float."""
    readers = [reader for maker, reader in edges if maker == producer]
    found = []
    for plan in plans:
        asked = plan.asked[producer]
        integer = Precision.parse(plan.executed[producer]).integer_activations
        floats = [r for r in readers if not Precision.parse(plan.executed[r]).integer_activations]
        if integer and floats and asked in own:
            extra = _operator_seconds(plan, roots).get(producer, 0.0) - own[asked].get(producer, 0.0)
            found.append(extra + sum(_conversions(plan, roots, "dequantize", producer)))
    return float(np.median(found)) if found else None


def _quantizing(plans: Sequence[TimedPlan], roots: Mapping[str, str], producer: str) -> float | None:
    """Median over plans of quantizing what ``producer`` makes in float."""
    sums = [sum(found) for plan in plans if (found := _conversions(plan, roots, "quantize", producer))]
    return float(np.median(sums)) if sums else None


def _output_bytes(plans: Sequence[TimedPlan], name: str) -> int:
    """The most bytes that ``name``'s result takes in any plan: in float."""
    sizes = [
        call.output_bytes
        for plan in plans
        for call in plan.calls
        if call.role == "operator" and call.operator == name
    ]
    return max(sizes, default=0)


def _completed(found: Mapping[str, float | None], sizes: Mapping[str, int]) -> dict[str, float]:
    line = _line([(sizes[name], value) for name, value in found.items() if value is not None])
    return {name: line(sizes[name]) if value is None else value for name, value in found.items()}


def _line(points: Sequence[tuple[int, float]]) -> Callable[[int], float]:
    """Seconds as a straight line of bytes, by least squares; at least 0. Without points: no cost."""
    if not points:
        return lambda _: 0.0
    sizes, seconds = np.array(points, np.float64).T
    if np.ptp(sizes) == 0.0:
        mean = float(seconds.mean())
        return lambda _: max(0.0, mean)
    slope, start = np.polyfit(sizes, seconds, 1)
    return lambda size: max(0.0, float(start + slope * size))
