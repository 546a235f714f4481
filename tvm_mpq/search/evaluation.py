"""The report of a search: what was found, beside what it has to beat, on samples that nothing was chosen by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from tvm_mpq.build import constant_bytes, stored_weights
from tvm_mpq.cost.notes import latency_notes
from tvm_mpq.cpu import cpu_name
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, W8A8
from tvm_mpq.search.goal import LATENCY, STORAGE
from tvm_mpq.search.pareto import front_choices
from tvm_mpq.search.preparation import Prepared
from tvm_mpq.search.problem import Choices, Floats
from tvm_mpq.search.refine import Found, Measured
from tvm_mpq.search.result import Change, Row, SearchResult, Tried
from tvm_mpq.transform.pipeline import Pipeline
from tvm_mpq.versions import versions


def report(prepared: Prepared, found: Found, limits: Mapping[str, float], unsigned: Floats) -> SearchResult:
    """Measure fp32, fp32 with its output scaled, uniform w8a8 and the best plan on the evaluation set, and the front.

    ``unsigned`` are the second-order estimates around fp32.
    """
    task, splits = prepared.task, prepared.task.splits
    names = prepared.space.names
    scaled = prepared.evaluator.on(splits.evaluation)
    plain = scaled.of(task.mod, prepared.plain_ranges)
    float_plan, eight = (PrecisionPlan.uniform(names, precision) for precision in (FP32, W8A8))
    best = prepared.space.plan(found.best.choices)
    fp32 = plain.losses(float_plan)
    measured = [
        ("fp32", float_plan, fp32),
        ("fp32 scaled", float_plan, scaled.losses(float_plan)),
        ("w8a8, nearest", eight, plain.losses(eight)),
        ("plan", best, prepared.measure(scaled, best)),
    ]
    selected = prepared.measure(prepared.evaluator, best)
    options = task.options
    front = []
    if options.front:
        for name, choices in front_choices(prepared, found.loss, unsigned, limits, options.front):
            plan = prepared.space.plan(choices)
            change = Change.of(prepared.measure(scaled, plan), fp32)
            front.append(Row(name, _latency(prepared, plan), stored_bytes_of(prepared, plan), change))
    return SearchResult(
        rows=tuple(
            Row(name, _latency(prepared, plan), stored_bytes_of(prepared, plan), Change.of(losses, fp32))
            for name, plan, losses in measured
            if prepared.scale is not None or name != "fp32 scaled"
        ),
        front=tuple(front),
        selection=Change.of(selected, prepared.fp32),
        output_scale={} if prepared.scale is None else prepared.scale.factors,
        goal=asdict(task.goal),
        limits=dict(limits),
        binding=found.binding,
        precisions=_counted(prepared, found.best.choices),
        tried=tuple(_tried(prepared, point) for point in found.measured),
        latency_kind=task.costs.kind,
        latency_cpu=task.costs.cpu,
        latency_notes=latency_notes(task.costs, best),
        step=prepared.candidates.step,
        splits={
            "how": splits.how,
            "sha256": splits.hashes(),
            "samples": {
                name: len(getattr(splits, name)) for name in ("calibration", "selection", "evaluation")
            },
        },
        seconds={},
        environment={
            "model_sha256": task.model_sha256,
            "target": task.costs.target,
            "cpu": cpu_name(),
            "versions": versions(),
            "seed": options.seed,
            "options": asdict(options) | {"precisions": [str(precision) for precision in options.precisions]},
        },
    )


def stored_bytes_of(prepared: Prepared, plan: PrecisionPlan) -> int:
    """Bytes of all weights in the package of ``plan``, exactly; of fp32, what limits are relative to."""
    if all(precision == FP32 for precision in plan.operators.values()):
        return constant_bytes(prepared.task.mod)
    weights, biases = prepared.candidates.of(plan)
    pipeline = Pipeline(plan, prepared.ranges, prepared.target.instruction, weights=weights, biases=biases)
    return stored_weights(pipeline.lower(pipeline.annotate(prepared.mod)))


def _latency(prepared: Prepared, plan: PrecisionPlan) -> float:
    if all(precision == FP32 for precision in plan.operators.values()):
        return prepared.fp32_latency
    return prepared.problem.totals(prepared.space.choices(plan))[LATENCY]


def _counted(prepared: Prepared, choices: Choices) -> dict[str, int]:
    """How many operators with weights have each precision."""
    weighted = np.flatnonzero(
        np.ptp(np.where(prepared.space.allowed, prepared.space.storage, 0.0), axis=1) > 0
    )
    return dict(Counter(str(prepared.space.precisions[choices[row]]) for row in weighted))


def _tried(prepared: Prepared, point: Measured) -> Tried:
    return Tried(
        _counted(prepared, point.choices),
        point.change,
        point.error,
        point.totals[LATENCY],
        point.totals[STORAGE] + prepared.space.fixed_bytes,
    )
