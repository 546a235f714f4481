"""Times of the kernels of one network under one plan, in a real build of the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class Listing:
    """What a network lowered for one plan calls: its kernels in order, and the key of each."""

    executed: Mapping[str, str]
    calls: tuple[KernelCall, ...]
    keys: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of the whole network: of all its calls in order."""
        return sha256(" ".join(self.keys).encode())


@dataclass(frozen=True)
class Lowered(Listing):
    """A network lowered for one plan, with its weights."""

    module: IRModule

    def listing(self) -> Listing:
        """All but the module."""
        return Listing(self.executed, self.calls, self.keys)


def lower(mod: IRModule, plan: PrecisionPlan, target: Target) -> Lowered:
    """Lower the canonical ``mod`` under ``plan`` with placeholder ranges, as far as code generation."""
    pipeline = Pipeline(plan, placeholder_ranges(mod), target.instruction)
    annotated = pipeline.annotate(mod)
    lowered = pipeline.lower(annotated)
    calls, keys = kernel_calls(lowered), kernel_keys(lowered)
    executed = {
        attr.text(f, attr.OPERATOR): attr.text(f, attr.PRECISION) for _, f, _ in attr.calls(annotated)
    }
    return Lowered(executed, calls, tuple(keys[call.kernel] for call in calls), lowered)


class Stopwatch:
    """Times lowered networks on this machine, those with kernels or sums that ``times`` does not know.

    One network after the other is built, timed and freed: a table of many plans of a large network would fill the
    memory otherwise. The first one stays and runs in turns with each of the others, and what these take is divided by
    how much slower it has become, so that all share the machine's ups and downs.
    Kernels known from before that run again tell the same of the time since then (``drift``, above 1 when slower), and
    everything new is divided by it: what is known stays comparable. ``measured`` counts the networks that were run.
    """

    def __init__(
        self, target: Target, threads: int, times: KernelTimes, inputs: Sequence[npt.NDArray[Any]]
    ) -> None:
        self.target = target
        self.threads = threads
        self.times = times
        self.inputs = inputs
        self.drift = 1.0
        self._anchor: _Run | None = None
        self._anchor_seconds = 0.0
        self._instrument: EmptyCalls | None = None
        self._samples: dict[str, list[float]] = {}
        self._networks: dict[str, float] = {}

    @property
    def measured(self) -> int:
        """How many networks were run."""
        return len(self._networks)

    def time(self, lowered: Lowered, whole: bool) -> None:
        """Time the kernels of ``lowered``, and with ``whole`` the network, if need be."""
        known = set(lowered.keys) <= self.times.kernels.keys()
        if lowered.key in self._networks or (known and (not whole or lowered.key in self.times.networks)):
            return
        run = _Run(lowered, self.target, self.threads)
        if self._instrument is None:
            self._instrument = measure_empty_calls(self.target.tvm_dict())
        pace: list[float] = []
        for _ in range(_BLOCKS):
            if self._anchor is not None:
                pace.append(self._anchor.once(self.inputs))
            run.block(self.inputs)
        slower = float(np.median(pace)) / self._anchor_seconds if pace else 1.0
        for key, seconds in zip(lowered.keys, run.seconds(self._instrument), strict=True):
            # Wherever it runs: the median over all places and networks.
            self._samples.setdefault(key, []).append(float(seconds) / slower)
        self._networks[lowered.key] = run.whole() / slower
        if self._anchor is None:
            self._anchor, self._anchor_seconds = run, run.whole()

    def finish(self) -> None:
        """Put all that was timed into ``times``."""
        found = {key: float(np.median(values)) for key, values in self._samples.items()}
        again = found.keys() & self.times.kernels.keys()
        before = sum(self.times.kernels[key] for key in again)
        if before > 0.0:
            self.drift = sum(found[key] for key in again) / before
        for key in found.keys() - again:
            self.times.kernels[key] = found[key] / self.drift
        for key, seconds in self._networks.items():
            self.times.networks[key] = seconds / self.drift
        self._anchor = None


class _Run:
    """A built network in two copies: one whose calls are traced, one undisturbed."""

    def __init__(self, lowered: Lowered, target: Target, threads: int) -> None:
        self._kernels = tuple(call.kernel for call in lowered.calls)
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
        self._whole.append(self._time_whole(inputs))

    def once(self, inputs: Sequence[npt.NDArray[Any]]) -> float:
        """Median seconds of a few runs of the undisturbed copy."""
        return float(np.median(self._time_whole(inputs)))

    def _time_whole(self, inputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        arguments = [*tensors(list(inputs)), *self._weights]
        return run_with_threads(self.threads, lambda: time_whole(self._machine, arguments, _RUNS, _WARMUP))

    def seconds(self, empty: EmptyCalls) -> npt.NDArray[np.float64]:
        """Seconds of each call, float64 [calls]."""
        first = self._traces[0]
        if first.kernels != self._kernels:
            raise AssertionError("the network calls other kernels than were lowered")
        traced = np.concatenate([trace.seconds for trace in self._traces])
        return typical(empty.net(traced, first.arguments))

    def whole(self) -> float:
        """Median seconds of the network."""
        return float(np.median(np.concatenate(self._whole)))
