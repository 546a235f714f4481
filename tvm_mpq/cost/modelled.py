"""A roofline model of the cost table, for a target that is not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tvm import IRModule

from tvm_mpq.cost.assemble import TimedPlan
from tvm_mpq.cost.loops import find_step, multiplications
from tvm_mpq.cost.measure import table_of, with_fp32
from tvm_mpq.cost.network import alternating_plans, uniform_plans
from tvm_mpq.cost.peaks import Peaks
from tvm_mpq.cost.roofline import bound
from tvm_mpq.cost.runs import lower
from tvm_mpq.cost.table import MODELLED, CostTable
from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import Gpu
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import Precision
from tvm_mpq.target import Roofline, Target

_CALL = 1e-6
"""Seconds that a kernel call takes at least: the virtual machine's work and waking the other threads."""
_LAUNCH = 3e-6
"""The same of a kernel on a GPU, whose blocks start and end."""


def model_costs(
    mod: IRModule,
    target: Target,
    precisions: Sequence[Precision],
    *,
    model_sha256: str = "",
    threads: int = 1,
) -> CostTable:
    """The cost table of ``mod`` if every kernel reached its roof on ``target``; nothing is run.

    The roofs come from the target's ``[roofline]`` or ``[gpu]``. A real kernel takes longer, by factors that differ:
    the table says that it is modelled. Raises MpqError for a target without a roofline and for precisions it does not
    support.
    """
    if target.roofline is None and target.gpu is None:
        raise MpqError(
            f"the target {target.name} has no [roofline] to model costs from; add one to its .toml, or measure"
        )
    if threads < 1:
        raise MpqError(f"cannot model {threads} threads: at least 1")
    chosen = with_fp32(target, precisions)
    least = _CALL if target.gpu is None else _LAUNCH

    def timed(plan: PrecisionPlan) -> TimedPlan:
        lowered = lower(mod, plan, target)
        constants = sum(call.constant_bytes for call in lowered.calls)
        peaks = _peaks(target, {call.step for call in lowered.calls if call.step}, threads)
        seconds = [bound(call, peaks, constants).seconds + least for call in lowered.calls]
        asked = {name: str(plan[name]) for name in plan}
        return TimedPlan(asked, lowered.executed, lowered.calls, seconds)

    uniform = {str(p): timed(plan) for p, plan in zip(chosen, uniform_plans(mod, chosen), strict=True)}
    integer = [precision for precision in chosen if precision.integer_activations]
    others = [timed(plan) for plan in alternating_plans(mod, integer[0])] if integer else []
    return replace(
        table_of(mod, uniform, others),
        kind=MODELLED,
        model_sha256=model_sha256,
        target=target.name,
        cpu=target.description,
        threads=threads,
    )


def _peaks(target: Target, steps: set[str], threads: int) -> Peaks:
    if target.gpu is not None:
        return gpu_peaks(target.gpu, steps)
    assert target.roofline is not None
    return peaks_of(target.roofline, steps, threads)


def gpu_peaks(gpu: Gpu, steps: set[str]) -> Peaks:
    """What a whole GPU can do at most; its one cache for all multiprocessors stands for both levels."""
    cache = int(gpu.l2_kb * 1024)
    rates = {step: gpu.macs_per_second(step) for step in sorted(steps)}
    return Peaks(1, rates, gpu.l2_gbs * 1e9, gpu.l2_gbs * 1e9, gpu.memory_gbs * 1e9, cache, cache)


def peaks_of(roofline: Roofline, steps: set[str], threads: int) -> Peaks:
    """What ``threads`` cores of a machine can do at most."""

    def rate(name: str) -> float:
        step = find_step(name)
        units = roofline.float_multipliers if step.dtype == "float32" else roofline.integer_multipliers
        return roofline.clock_ghz * 1e9 * units * threads * step.macs / multiplications(name)

    return Peaks(
        threads,
        {step: rate(step) for step in sorted(steps)},
        roofline.second_cache_gbs * 1e9 * threads,
        roofline.last_cache_gbs * 1e9 * threads,
        roofline.memory_gbs * 1e9,
        int(roofline.second_cache_kb * 1024) * threads,
        int(roofline.last_cache_kb * 1024),
    )
