"""Times of the kernels of one network under one plan, in a real build of the whole network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from tvm_mpq.build import build
from tvm_mpq.cost.calls import kernel_calls
from tvm_mpq.cost.empty_calls import EmptyCalls, measure_empty_calls
from tvm_mpq.cost.network import placeholder_ranges
from tvm_mpq.cost.store import KernelTimes, kernel_keys
from tvm_mpq.files import sha256
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.runtime.metadata import KernelCall
from tvm_mpq.runtime.session import return_free_memory
from tvm_mpq.runtime.threads import run_with_threads
from tvm_mpq.runtime.tracer import Trace, Tracer, tensors, time_whole, typical
from tvm_mpq.runtime.weights import expanded_weights
from tvm_mpq.target import Target
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.pipeline import Pipeline

_BLOCKS = 8
_RUNS = 4
_WARMUP = 3
"""Of each block, traced and whole in turns."""


@dataclass(frozen=True)
class Lowered:
    """A network lowered for one plan: its kernel calls in order, and the key of each."""

    module: IRModule
    executed: Mapping[str, str]
    calls: tuple[KernelCall, ...]
    keys: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of the whole network: of all its calls in order."""
        return sha256(" ".join(self.keys).encode())


def lower(mod: IRModule, plan: PrecisionPlan, target: Target) -> Lowered:
    """Lower the canonical ``mod`` under ``plan`` with placeholder ranges, as far as code generation."""
    pipeline = Pipeline(plan, placeholder_ranges(mod), target.instruction)
    annotated = pipeline.annotate(mod)
    lowered = pipeline.lower(annotated)
    calls, keys = kernel_calls(lowered), kernel_keys(lowered)
    executed = {
        attr.text(f, attr.OPERATOR): attr.text(f, attr.PRECISION) for _, f, _ in attr.calls(annotated)
    }
    return Lowered(lowered, executed, calls, tuple(keys[call.kernel] for call in calls))


class Stopwatch:
    """Times lowered networks on this machine, those with kernels or sums that ``times`` does not know.

    All of them are built first and then run in turns, so that each gets the same share of the machine's ups and downs.
    Kernels known from before that run again tell how much faster or slower the machine has become (``drift``, above 1
    when slower), and everything new is divided by it: what is known stays comparable. ``measured`` counts the networks
    that were run.
    """

    def __init__(self, target: Target, threads: int, times: KernelTimes) -> None:
        self.target = target
        self.threads = threads
        self.times = times
        self.measured = 0
        self.drift = 1.0
        self._waiting: dict[str, Lowered] = {}

    def add(self, lowered: Lowered, whole: bool) -> None:
        """Have the kernels of ``lowered`` timed by the next :meth:`run`, and with ``whole`` the network, if need be."""
        known = set(lowered.keys) <= self.times.kernels.keys()
        if not known or (whole and lowered.key not in self.times.networks):
            self._waiting[lowered.key] = lowered

    def run(self, inputs: Sequence[npt.NDArray[Any]], progress: Callable[[], None]) -> None:
        """Time all that wait on ``inputs``; ``progress`` is called after each network is built."""
        if not self._waiting:
            return
        runs = []
        for lowered in self._waiting.values():
            runs.append(_Run(lowered, self.target, self.threads))
            progress()
        for _ in range(_BLOCKS):
            for each in runs:
                each.block(inputs)
        instrument = measure_empty_calls(self.target.tvm_dict())
        samples: dict[str, list[float]] = {}
        for each in runs:
            for key, seconds in zip(each.lowered.keys, each.seconds(instrument), strict=True):
                # Wherever it runs: the median over all places and networks.
                samples.setdefault(key, []).append(float(seconds))
        found = {key: float(np.median(values)) for key, values in samples.items()}
        again = found.keys() & self.times.kernels.keys()
        before = sum(self.times.kernels[key] for key in again)
        if before > 0.0:
            self.drift = sum(found[key] for key in again) / before
        for key in found.keys() - again:
            self.times.kernels[key] = found[key] / self.drift
        for each in runs:
            self.times.networks[each.lowered.key] = each.whole() / self.drift
        self.measured += len(runs)
        self._waiting = {}


class _Run:
    """A built network in two copies: one whose calls are traced, one undisturbed."""

    def __init__(self, lowered: Lowered, target: Target, threads: int) -> None:
        self.lowered = lowered
        self.threads = threads
        built = build(lowered.module, target)

        def start() -> Any:
            machine = relax.VirtualMachine(built.executable, tvm.cpu())
            return_free_memory()
            return machine

        self._machine = run_with_threads(threads, start)
        self._weights = run_with_threads(threads, lambda: expanded_weights(self._machine, built.weights))
        traced = run_with_threads(threads, start)
        self._tracer = Tracer(threads, traced, lambda given: list(given.values()), self._weights)
        self._traces: list[Trace] = []
        self._whole: list[npt.NDArray[np.float64]] = []

    def block(self, inputs: Sequence[npt.NDArray[Any]]) -> None:
        """A few runs of each copy."""
        named = {str(index): array for index, array in enumerate(inputs)}
        self._traces.append(self._tracer.trace(named, _RUNS))
        arguments = [*tensors(list(inputs)), *self._weights]
        self._whole.append(
            run_with_threads(self.threads, lambda: time_whole(self._machine, arguments, _RUNS, _WARMUP))
        )

    def seconds(self, empty: EmptyCalls) -> npt.NDArray[np.float64]:
        """Seconds of each call, float64 [calls]."""
        first = self._traces[0]
        if first.kernels != tuple(call.kernel for call in self.lowered.calls):
            raise AssertionError("the network calls other kernels than were lowered")
        traced = np.concatenate([trace.seconds for trace in self._traces])
        return typical(empty.net(traced, first.arguments))

    def whole(self) -> float:
        """Median seconds of the network."""
        return float(np.median(np.concatenate(self._whole)))
