"""Running TVM's kernels with a chosen number of threads.

TVM keeps one thread pool for each thread that calls it. A pool's largest size is fixed when it is made, at
half the processors unless told otherwise, and the default mode pins the calling thread to one core for good.
So each number of threads gets a calling thread of its own here, whose pool is set up before it is first used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tvm_mpq.errors import MpqError

T = TypeVar("T")

# TVM's kSpecifyThreadShareAllCore: workers may run on any core of the list, and no thread is pinned to one.
_SHARE_ALL_CORES = -3


def available_threads() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0))


def check_threads(threads: int | None) -> int:
    """``threads``, or all available for None; raises MpqError if it is less than 1 or more than there are."""
    most = available_threads()
    if threads is None:
        return most
    if not 1 <= threads <= most:
        raise MpqError(f"cannot run with {threads} threads: this machine offers 1 to {most}")
    return threads


def run_with_threads(threads: int, work: Callable[[], T]) -> T:
    """The result of ``work()``, called in a thread whose TVM kernels use ``threads`` threads."""
    return _caller(threads).submit(work).result()


@functools.cache
def _caller(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, f"tvm-mpq-{threads}", initializer=_set_up_pool, initargs=(threads,))


def _set_up_pool(threads: int) -> None:
    import tvm

    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    # The last argument is the pool's largest size; it must be given before the pool is first used.
    tvm.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, threads, cores, threads)
    set_to = tvm.get_global_func("runtime.NumThreads")()
    if set_to != threads:
        raise RuntimeError(f"TVM's thread pool has {set_to} threads where {threads} were asked for")
