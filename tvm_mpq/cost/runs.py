"""Times of the kernels of one network under one plan, in a real build of the whole network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import IRModule

from tvm_mpq.build import Built, build
from tvm_mpq.cost.calls import kernel_calls
from tvm_mpq.cost.empty_calls import EmptyCalls, Place, measure_empty_calls
from tvm_mpq.cost.network import placeholder_ranges
from tvm_mpq.cost.placed import Here, OnDevice, Placed
from tvm_mpq.cost.store import KernelTimes, kernel_keys
from tvm_mpq.files import sha256
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.runtime.machine import Machine
from tvm_mpq.runtime.metadata import KernelCall
from tvm_mpq.runtime.tracer import Trace, typical
from tvm_mpq.target import Target
from tvm_mpq.tensor_spec import TensorSpec
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
    """Times lowered networks on this machine or on ``device``, those with kernels or sums that ``times`` does not know.

    All of them are built first and then run in turns, so that each gets the same share of the machine's ups and downs.
    Kernels known from before that run again tell how much faster or slower the machine has become (``drift``, above 1
    when slower), and everything new is divided by it: what is known stays comparable. ``measured`` counts the networks
    that were run.
    """

    def __init__(
        self, target: Target, threads: int, times: KernelTimes, device: Machine | None = None
    ) -> None:
        self.target = target
        self.device = device
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

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], progress: Callable[[], None]) -> None:
        """Time all that wait on ``inputs``; ``progress`` is called after each network is built."""
        if not self._waiting:
            return
        runs = []
        for lowered in self._waiting.values():
            runs.append(_Run(lowered, inputs, self.target, self._place))
            progress()
        for _ in range(_BLOCKS):
            for each in runs:
                each.block()
        instrument = measure_empty_calls(self.target.tvm_dict(), self._place)
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

    def _place(self, built: Built, inputs: Sequence[TensorSpec]) -> Placed:
        if self.device is None:
            return Here(built, self.threads)
        return OnDevice(built, self.target, inputs, self.device, self.threads)


class _Run:
    """A built network, and what was measured of it."""

    def __init__(
        self,
        lowered: Lowered,
        inputs: Mapping[str, npt.NDArray[Any]],
        target: Target,
        place: Place,
    ) -> None:
        self.lowered = lowered
        specs = [TensorSpec(name, array.shape, str(array.dtype)) for name, array in inputs.items()]
        self._inputs = inputs
        self._placed = place(build(lowered.module, target), specs)
        self._traces: list[Trace] = []
        self._whole: list[npt.NDArray[np.float64]] = []

    def block(self) -> None:
        """A few runs of each copy."""
        self._traces.append(self._placed.trace(self._inputs, _RUNS))
        self._whole.append(self._placed.whole(self._inputs, _RUNS, _WARMUP))

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
