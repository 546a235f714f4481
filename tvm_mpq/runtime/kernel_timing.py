"""Time built kernels of one spec against each other: runs in a worker process of the tuner, or on a device.

In a network a kernel finds its input where the kernel before left it, in the cache, but all else that it touches was
last used a run ago, and most of the network's weights and tensors passed through the caches since. So before each call
on a processor here as many other bytes are read, and then its output and input are written. Called again and again
instead, kernels that write much for themselves look a fifth faster than they are. A GPU's calls follow one another
without a pause; each reads another copy of the weights, of so many that its cache cannot hold them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvm_mpq.cpu import cache_bytes
from tvm_mpq.gpu import driver_device
from tvm_mpq.runtime.threads import run_with_threads

_MOST_COPIES = 64
_SAMPLE_SECONDS = 1e-3
"""The calls of a sample take about this long, where one takes less."""
_OTHER_BYTES = 16 * 1024 * 1024
"""What a network of some million weights reads and writes in a run, about."""
_HOPELESS = 1.5
"""After the first round a tile this many times as slow as the first is measured no more."""

Parameter = tuple[Sequence[int], str]


def measure_kernels(
    libraries: list[str],
    parameters: list[list[Parameter]],
    threads: int,
    rounds: int,
    seed: int,
    on_gpu: bool = False,
) -> list[list[float]]:
    """Seconds of a call of each library's ``main`` in each round, all interleaved: [libraries][rounds].

    ``parameters`` gives the shapes and dtypes of each library's parameters: input, weights, others, output. A list is
    short where a kernel is far slower than the first. The files are deleted once they are loaded. With ``on_gpu`` they
    run on the first GPU, one after the other without a pause, which small ones do not fill: that is how a network runs
    them too.
    """
    return run_with_threads(threads, lambda: _measure(libraries, parameters, rounds, seed, on_gpu))


def _measure(
    libraries: list[str], parameters: list[list[Parameter]], rounds: int, seed: int, on_gpu: bool
) -> list[list[float]]:
    import ctypes

    import tvm

    ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
    random = np.random.default_rng(seed)
    place = _Gpu() if on_gpu else _Processor()
    made: dict[str, list[tuple[Any, ...]]] = {}
    kernels = []
    for path, wanted in zip(libraries, parameters, strict=True):
        name = repr(wanted)
        if name not in made:
            made[name] = place.arguments([_values(shape, dtype, random) for shape, dtype in wanted])
        kernels.append(_Kernel(tvm.runtime.load_module(path)["main"], made[name], place))
    for path in set(libraries):  # tiles may differ and give the same code
        Path(path).unlink()
    seconds: list[list[float]] = [[] for _ in kernels]
    gc.disable()
    try:
        for number in range(rounds):
            # The order turns around, so that no kernel always follows the same other.
            order = range(len(kernels)) if number % 2 == 0 else reversed(range(len(kernels)))
            for i in order:
                if number == 0 or seconds[i][0] <= _HOPELESS * seconds[0][0]:
                    seconds[i].append(kernels[i].sample())
    finally:
        gc.enable()
    return seconds


class _Processor:
    """This machine's memory and processor."""

    most_calls = 4
    """Of a sample: what is done between them takes longer than most."""
    first_counts = True
    """No call finds more in the caches than another."""

    def __init__(self) -> None:
        self._others = np.ones(min(_OTHER_BYTES, 2 * cache_bytes(3)) // 8, np.int64)

    def arguments(self, values: Sequence[np.ndarray]) -> list[tuple[Any, ...]]:
        """Lists of arguments to be used in turn."""
        return [tuple(self.tensor(value) for value in values)]

    def tensor(self, value: np.ndarray) -> Any:
        """A copy that kernels can read."""
        import tvm

        return tvm.runtime.tensor(value)

    def time(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> float:
        """Seconds of all ``calls``, without what is done between them."""
        seconds = 0.0
        for each in calls:
            self._others.sum()
            for tensor in (each[-1], each[0]):
                tensor.copyfrom(tensor.numpy())
            start = time.perf_counter()
            function(*each)
            seconds += time.perf_counter() - start
        return seconds


class _Gpu:
    """The first GPU and its memory."""

    most_calls = 1000
    first_counts = False
    """It finds code and input cold."""

    def __init__(self) -> None:
        import tvm

        self._device = tvm.cuda(0)

    def arguments(self, values: Sequence[np.ndarray]) -> list[tuple[Any, ...]]:
        """They differ in the copy of the weights."""
        found = driver_device()
        assert found is not None, "the tuner asks for a GPU before it measures on one"
        copies = min(_MOST_COPIES, 1 + 4 * int(found.l2_kb * 1024) // max(1, values[1].nbytes))
        first, weights, *others = map(self.tensor, values)
        return [(first, self.tensor(values[1]) if i else weights, *others) for i in range(copies)]

    def tensor(self, value: np.ndarray) -> Any:
        """A copy in its memory."""
        import tvm

        return tvm.runtime.tensor(value, self._device)

    def time(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> float:
        """Seconds from the first of ``calls`` until all have ended."""
        start = time.perf_counter()
        for each in calls:
            function(*each)
        self._device.sync()
        return time.perf_counter() - start


class _Kernel:
    """A function and its argument lists."""

    def __init__(
        self, function: Callable[..., Any], arguments: list[tuple[Any, ...]], place: _Processor | _Gpu
    ) -> None:
        self._function, self._arguments, self._place = function, arguments, place
        self._next = 0
        self._time(1)
        once = min(self._time(1) for _ in range(2))
        self._calls = max(1, min(int(_SAMPLE_SECONDS / once), place.most_calls))

    def sample(self) -> float:
        """Seconds of a call, the mean of some."""
        if not self._place.first_counts:
            self._time(1)
        return self._time(self._calls)

    def _time(self, calls: int) -> float:
        chosen = [self._arguments[(self._next + i) % len(self._arguments)] for i in range(calls)]
        self._next += calls
        return self._place.time(self._function, chosen) / calls


def _values(shape: Sequence[int], dtype: str, random: np.random.Generator) -> np.ndarray:
    """Ordinary numbers of a type: no denormal floats, and multipliers that keep accumulators in range."""
    if dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    if dtype == "int8":
        return random.integers(-127, 128, shape, np.int8)
    numbers = (random.standard_normal(shape) * 0.01).astype(np.float32)
    if dtype == "uint16":  # the bits of a bfloat16, or of a float16 that is ordinary as well
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)
    if dtype in ("float32", "float16"):
        return numbers.astype(dtype)
    return np.full(shape, 128, dtype)
