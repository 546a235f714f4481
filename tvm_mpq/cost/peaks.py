"""What this machine can do at most, measured: multiply-accumulates in registers, and reading from each memory.

TVM compiles the loops, so that no C compiler is needed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule
from tvm.runtime import tensor
from tvm.tirx import PrimFunc

from tvm_mpq.cost.loops import READ_LANES, READERS, TILES, find_step, multiply_loop, read_loop
from tvm_mpq.cost.tile_loop import tile_loop
from tvm_mpq.cpu import cache_bytes
from tvm_mpq.runtime.threads import run_with_threads

_ACCUMULATORS = (10, 12, 14)
"""Tried in turn; with the operand and a product, 14 fill sixteen registers."""
_REPEATS = 10
_SECONDS = 2e-3
"""Aimed at for one timed loop: long beside waking the threads, short beside the machine's other work."""


@dataclass(frozen=True)
class Peaks:
    """Measured with ``threads`` threads: ``macs_per_second`` of each step, bytes a second and bytes of each memory.

    ``second_cache_bytes`` is that of all threads together.
    """

    threads: int
    macs_per_second: dict[str, float]
    second_cache_bandwidth: float
    last_cache_bandwidth: float
    memory_bandwidth: float
    second_cache_bytes: int
    last_cache_bytes: int

    def bandwidth(self, working_set: int) -> float:
        """Bytes a second from the nearest memory that holds ``working_set`` bytes."""
        if working_set <= self.second_cache_bytes:
            return self.second_cache_bandwidth
        return self.last_cache_bandwidth if working_set <= self.last_cache_bytes else self.memory_bandwidth


def measure_peaks(steps: Iterable[str], target: Mapping[str, Any], threads: int) -> Peaks:
    """Measure the named ``steps`` (see :func:`tvm_mpq.cost.work.step_name`) and the memories: about a second.

    ``target`` is the TVM target's fields.
    """
    second, last = cache_bytes(2), cache_bytes(3)
    sizes = (second // 2 * threads, max(last // 4, 2 * second * threads), 4 * last)

    def measure() -> Peaks:
        rates = {step: _multiply_rate(step, target, threads) for step in sorted(set(steps))}
        near, far, memory = _read_rates(sizes, target, threads)
        return Peaks(threads, rates, near, far, memory, second * threads, last)

    return run_with_threads(threads, measure)


def _multiply_rate(name: str, target: Mapping[str, Any], threads: int) -> float:
    """Multiply-accumulates a second of all threads together."""
    step = find_step(name)
    # The operand keeps floats near 1 and integers busy.
    weights = tensor(np.full((2, step.lanes), 0.5 if step.dtype == "float32" else 0x01030107, step.dtype))
    rates = []
    for accumulators in _ACCUMULATORS:
        loop = tile_loop if name == TILES else multiply_loop
        main = _compile(loop(step, accumulators, threads), target)
        out = tensor(np.zeros((threads, accumulators * step.lanes), step.dtype))
        seconds = _seconds_each(functools.partial(main, weights, out))
        rates.append(threads * accumulators * step.macs / seconds)
    return max(rates)


def _read_rates(sizes: tuple[int, ...], target: Mapping[str, Any], threads: int) -> list[float]:
    """Bytes a second of all threads together, reading working sets of ``sizes`` bytes again and again."""
    stride = READERS * READ_LANES
    floats = max(sizes) // 4 // (stride * threads) * stride * threads
    main = _compile(read_loop(floats, threads), target)
    data = tensor(np.ones(floats, np.float32))
    out = tensor(np.zeros((threads, stride), np.float32))
    rates = []
    for size in sizes:
        chunks = size // 4 // stride // threads
        seconds = _seconds_each(functools.partial(main, data, out, chunks))
        rates.append(chunks * stride * 4 * threads / seconds)
    return rates


def _compile(function: PrimFunc, target: Mapping[str, Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = tvm.compile(
        IRModule({"main": function}), target=tvm.target.Target(dict(target))
    )["main"]
    return compiled


def _seconds_each(run: Callable[[int], Any]) -> float:
    """The least seconds of one iteration of ``run(count)`` over several timings of about two milliseconds."""
    count = 1
    while True:
        start = time.perf_counter()
        run(count)
        seconds = time.perf_counter() - start
        if seconds >= _SECONDS:
            break
        count *= 2
    best = seconds
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run(count)
        best = min(best, time.perf_counter() - start)
    return best / count
