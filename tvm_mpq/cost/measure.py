"""Measure a cost table on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.progress import Progress
from tvm import IRModule

from tvm_mpq.cost.assemble import TimedPlan, assemble
from tvm_mpq.cost.network import alternating_plans, edges, executed_plan, roots, uniform_plans
from tvm_mpq.cost.runs import Lowered, Stopwatch, lower
from tvm_mpq.cost.store import KernelTimes
from tvm_mpq.cost.table import MEASURED, SCHEMA_VERSION, Check, CostTable
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.runtime.arrays import noise
from tvm_mpq.runtime.machine import Machine, ThisMachine
from tvm_mpq.target import Target, missing_features


def measure_costs(
    mod: IRModule,
    target: Target,
    precisions: Sequence[Precision],
    *,
    model_sha256: str = "",
    threads: int = 1,
    cache: Path | None = None,
    checks: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    device: Machine | None = None,
) -> CostTable:
    """The cost table of the canonical ``mod`` at ``precisions`` (fp32 is always one), measured here or on ``device``.

    Each precision is built for the whole network and its kernels timed in a real run; so are two mixed plans for the
    boundaries. Kernels known from before in the folder ``cache`` are not run again (see :mod:`tvm_mpq.cost.store`).
    ``checks`` random mixed plans, drawn with ``seed``, are measured as well, and the table holds how well it predicts
    them and the uniform plans.
    Raises MpqError for a target with a GPU or that the machine cannot run, and a precision that the target has no
    kernels for.
    """
    where = device or ThisMachine()
    threads = where.threads(threads)
    if target.gpu is not None:
        raise MpqError(
            f"cannot measure for target {target.name}: kernels on a GPU are not timed one by one; "
            "use --modelled for a roofline model"
        )
    lacking = missing_features(target, where.features)
    if lacking:
        which = "this machine" if device is None else "the device"
        raise MpqError(
            f"cannot measure for target {target.name}: {which} lacks {', '.join(lacking)}; "
            "use --modelled for a roofline model"
        )
    chosen = with_fp32(target, precisions)
    times = KernelTimes.open(cache, target, threads, where.cpu)
    stopwatch = Stopwatch(target, threads, times, device)
    plans = list(uniform_plans(mod, chosen))
    integer = [precision for precision in chosen if precision.integer_activations]
    mixed = list(alternating_plans(mod, integer[0])) if integer else []
    random = _random_plans(mod, chosen, checks, seed)
    task = None
    if progress is not None:
        task = progress.add_task("measuring costs", total=len(plans) + len(mixed) + len(random))

    def step() -> None:
        if progress is not None and task is not None:
            progress.advance(task)

    lowered = [lower(mod, plan, target) for plan in (*plans, *mixed, *random)]
    uniform, rest = lowered[: len(plans)], lowered[len(plans) :]
    alternating, checked = rest[: len(mixed)], rest[len(mixed) :]
    for each in (*uniform, *checked):
        stopwatch.add(each, whole=True)
    for each in alternating:
        stopwatch.add(each, whole=False)
    stopwatch.run(noise(io_specs(mod)[0]), step)
    stopwatch.times.save()

    kernels = stopwatch.times.kernels

    def of(plan: PrecisionPlan, lowered: Lowered) -> TimedPlan:
        asked = {name: str(plan[name]) for name in plan}
        return TimedPlan(asked, lowered.executed, lowered.calls, [kernels[key] for key in lowered.keys])

    table = table_of(
        mod,
        {str(p): of(plan, found) for p, plan, found in zip(chosen, plans, uniform, strict=True)},
        [of(plan, found) for plan, found in zip(mixed, alternating, strict=True)],
    )
    table = replace(
        table,
        kind=MEASURED,
        model_sha256=model_sha256,
        target=target.name,
        cpu=where.cpu,
        threads=threads,
    )
    names = [*map(str, chosen), *(f"random {number}" for number in range(1, len(random) + 1))]
    measured = [stopwatch.times.networks[found.key] for found in (*uniform, *checked)]
    predicted = [table.predict(executed_plan(mod, plan)) for plan in (*plans, *random)]
    rows = [Check(n, p, m) for n, p, m in zip(names, predicted, measured, strict=True)]
    return replace(table, checks=tuple(rows))


def with_fp32(target: Target, precisions: Sequence[Precision]) -> list[Precision]:
    """``precisions`` without repetitions and with fp32 first; MpqError for one that ``target`` does not support."""
    chosen = list(dict.fromkeys([FP32, *precisions]))
    for precision in chosen:
        if not target.supports(precision):
            known = ", ".join(target.precisions)
            raise MpqError(f"the target {target.name} has no kernels for {precision}: use {known}")
    return chosen


def table_of(mod: IRModule, uniform: Mapping[str, TimedPlan], others: Sequence[TimedPlan]) -> CostTable:
    """The table of timed plans, whose origin is still to be written into it."""
    kinds = {operator.name: operator.kind for operator in operators(mod)}
    costs, boundaries = assemble(kinds, roots(mod), edges(mod), uniform, others)
    return CostTable(SCHEMA_VERSION, "", "", "", "", 0, tuple(uniform), costs, boundaries)


def _random_plans(
    mod: IRModule, precisions: Sequence[Precision], count: int, seed: int
) -> list[PrecisionPlan]:
    rng = np.random.default_rng(seed)
    names = [operator.name for operator in operators(mod)]
    return [
        PrecisionPlan({name: precisions[int(rng.integers(len(precisions)))] for name in names})
        for _ in range(count)
    ]
