"""Timing every kernel call of a network through the virtual machine's instrument.

The clock runs from the end of the instrument's first call to the start of its second. That covers the kernel and what
the instrument costs, which :mod:`tvm_mpq.cost.empty_calls` measures and which grows with the number of arguments.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.runtime.threads import run_with_threads

Array = npt.NDArray[Any]
_BUILTIN = "vm.builtin."
"""What the virtual machine's own functions are called: memory and shapes, no kernels."""


@dataclass(frozen=True)
class Trace:
    """The kernel calls of one run in order, their numbers of arguments, and seconds float64 [runs, calls]."""

    kernels: tuple[str, ...]
    arguments: tuple[int, ...]
    seconds: npt.NDArray[np.float64]


class Tracer:
    """A loaded network whose kernel calls are timed. Made by :meth:`tvm_mpq.runtime.session.Session.tracer`."""

    def __init__(
        self,
        threads: int,
        machine: Any,
        checked: Callable[[Mapping[str, Array]], list[Array]],
        weights: Sequence[Any] = (),
    ) -> None:
        self.threads = threads
        self._machine = machine
        self._checked = checked
        self._weights = weights
        self._calls: list[tuple[str, int, float]] = []
        self._start = 0.0
        machine.set_instrument(self._instrument)

    def trace(self, inputs: Mapping[str, Array], repeat: int, warmup: int = 3) -> Trace:
        """Time the kernel calls of ``repeat`` runs after ``warmup`` that are not counted."""
        arrays = self._checked(inputs)
        return run_with_threads(self.threads, lambda: self._trace(arrays, repeat, warmup))

    def _trace(self, arrays: list[Array], repeat: int, warmup: int) -> Trace:
        main, arguments = self._machine["main"], [*tensors(arrays), *self._weights]
        runs = []
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(warmup + repeat):
                self._calls = []
                main(*arguments)
                runs.append(self._calls)
        finally:
            if collecting:
                gc.enable()
        seconds = np.array([[call[2] for call in run] for run in runs[warmup:]])
        return Trace(tuple(call[0] for call in runs[-1]), tuple(call[1] for call in runs[-1]), seconds)

    def _instrument(self, _function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> int:
        if before:
            self._start = time.perf_counter()
        else:
            seconds = time.perf_counter() - self._start
            if not name.startswith(_BUILTIN):
                self._calls.append((name, len(arguments), seconds))
        return 0


def tensors(arrays: list[Array], device: Any = None) -> list[Any]:
    """The arrays as TVM takes them, in the memory of ``device`` (None: this machine's own)."""
    import tvm

    return [tvm.runtime.tensor(array, device) for array in arrays]


def time_whole(
    machine: Any,
    arguments: list[Any],
    repeat: int,
    warmup: int,
    wait: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float64]:
    """Seconds of ``repeat`` runs of a machine that has no instrument, float64 [repeat], after ``warmup`` more.

    ``wait`` returns when a device has done what it was given.
    """
    main = machine["main"]
    for _ in range(warmup):
        main(*arguments)
    wait()
    seconds = np.empty(repeat)
    for i in range(repeat):
        start = time.perf_counter()
        main(*arguments)
        wait()
        seconds[i] = time.perf_counter() - start
    return seconds


def typical(seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Seconds of each call, float64 [calls], of many runs' [runs, calls]: medians that add up to the median run.

    A call is now and then late and never early, so that medians alone add up to less than a run takes.
    """
    medians = np.median(seconds, axis=0)
    return np.asarray(medians * (np.median(seconds.sum(axis=1)) / medians.sum()), np.float64)
