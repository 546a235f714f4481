"""A network's GPU code against its CPU code, on this machine: kernels checked, outputs compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from tvm_mpq.build import build
from tvm_mpq.cuda_check.emulator import Check
from tvm_mpq.cuda_check.network import EmulatedNetwork
from tvm_mpq.errors import MpqError
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.plan_weights import PlanWeights
from tvm_mpq.runtime.tracer import tensors
from tvm_mpq.runtime.weights import expanded_weights
from tvm_mpq.target import Target, host_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OutputCheck:
    """One output over all samples: elements, those that differ, the largest difference and the largest magnitude."""

    elements: int
    different: int
    largest_difference: float
    largest: float


@dataclass(frozen=True)
class NetworkCheck:
    """``kernels`` that ran, each checked; ``idle`` ones in the code that no call reaches; ``launches`` a sample.

    Seconds are of compiling and of all samples.
    """

    samples: int
    kernels: int
    idle: tuple[str, ...]
    launches: int
    outputs: tuple[OutputCheck, ...]
    compile_seconds: float
    run_seconds: float


def check_network(
    mod: IRModule,
    plan: PrecisionPlan,
    ranges: TensorRanges,
    target: Target,
    samples: Sequence[Sequence[Array]],
    weights: PlanWeights | None = None,
) -> NetworkCheck:
    """Run the canonical module ``mod`` under ``plan`` on ``samples``, for the GPU of ``target`` and for this processor.

    ``weights`` are those that a search chose with the plan. Each kernel's first launch is checked. Raises KernelFault
    for what a kernel does wrong, and MpqError for a target without a GPU and where g++ is missing.
    """
    if target.gpu is None:
        raise MpqError(f"the target {target.name} has no GPU: see 'tvm-mpq targets'")
    rounded, biases = None, None
    if weights is not None:
        mod, rounded, biases = weights.applied(mod, plan)

    def lowered(place: Target) -> IRModule:
        pipeline = Pipeline(plan, ranges, place.instruction, weights=rounded, biases=biases)
        return pipeline.lower(pipeline.annotate(mod))

    start = time.perf_counter()
    emulated = EmulatedNetwork(lowered(target), target, Check.FIRST)
    compiled = time.perf_counter()
    ours = [emulated.run(*sample) for sample in samples]
    ran = time.perf_counter()
    calls = emulated.calls()
    idle = tuple(name for name, (_, checked) in calls.items() if not checked)
    theirs = _on_processor(lowered(host_target()), samples)
    outputs = tuple(
        _compare([each[i] for each in ours], [each[i] for each in theirs]) for i in range(len(ours[0]))
    )
    launches = sum(count for count, _ in calls.values()) // len(samples)
    return NetworkCheck(
        len(samples), len(calls) - len(idle), idle, launches, outputs, compiled - start, ran - compiled
    )


def _on_processor(lowered: IRModule, samples: Sequence[Sequence[Array]]) -> list[list[Array]]:
    built = build(lowered, host_target())
    machine = relax.VirtualMachine(built.executable, tvm.cpu())
    weights = expanded_weights(machine, built.weights)
    results = [machine["main"](*tensors(list(sample)), *weights) for sample in samples]
    return [[t.numpy() for t in ([result] if hasattr(result, "numpy") else result)] for result in results]


def _compare(ours: Sequence[Array], theirs: Sequence[Array]) -> OutputCheck:
    a, b = (np.concatenate([np.ravel(each) for each in side]) for side in (ours, theirs))
    # Bits, so that a NaN equals itself and a zero not its negative.
    bits = f"u{a.dtype.itemsize}"
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return OutputCheck(
        a.size,
        int(np.count_nonzero(a.view(bits) != b.view(bits))),
        float(gap.max(initial=0.0)),
        float(np.abs(b.astype(np.float64)).max(initial=0.0)),
    )
