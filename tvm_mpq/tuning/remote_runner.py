"""Build tiles here and time them on devices over RPC: on all that a tracker has of a key, at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from tvm_mpq.device.connection import Place
from tvm_mpq.errors import MpqError
from tvm_mpq.target import Target
from tvm_mpq.tuning.process import WorkerError, WorkerPool
from tvm_mpq.tuning.remote import KernelError, longest
from tvm_mpq.tuning.runner import Builds, Job, Timing

_MOST_DEVICES = 16
_ATTEMPTS = 2
"""Tiles that were being measured when a device was lost are measured again, before they are suspected."""


class RemoteRunner:
    """Times on the devices at ``place``, whose processors (or GPUs) are called ``cpu``, with ``threads`` threads.

    A batch is divided among the devices there are at the moment, and its first job, which the others are compared with,
    runs on each of them: what the others took there is scaled, round by round, to the device that the first part ran
    on. A device may be silent for ``seconds``; where it is lost, the tracker gives another. ``say`` is told of it.
    Raises MpqError when no device is left.
    """

    def __init__(
        self,
        target: Target,
        threads: int,
        place: Place,
        cpu: str,
        seed: int = 0,
        seconds: float = 300.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.cpu = cpu
        self._place, self._threads, self._seed, self._seconds, self._say = place, threads, seed, seconds, say
        self._on_gpu = target.gpu is not None
        self._builds = Builds(target, self._time)
        self._connections = WorkerPool(_MOST_DEVICES)
        self._parts = ThreadPoolExecutor(_MOST_DEVICES)
        self._closed = threading.Event()

    def measure(self, jobs: Sequence[Job], rounds: int) -> list[Timing]:
        """See :class:`~tvm_mpq.tuning.runner.Runner`."""
        others = jobs[1:]
        count = max(1, min(self._place.count(), len(others), _MOST_DEVICES))
        parts = [[jobs[0], *others[first::count]] for first in range(count)]
        found = list(self._parts.map(lambda part: self._builds.measure(part, rounds), parts))
        reference = found[0][0]
        result = [reference] * len(jobs)
        for first, (own, *timings) in enumerate(found):
            result[1 + first :: count] = [scaled(timing, own, reference) for timing in timings]
        return result

    def _time(self, paths: list[str], parameters: list[Any], rounds: int) -> list[list[float]]:
        (host, port), key = self._place.address, self._place.key
        others = (paths, parameters, self._threads, rounds, self._seed, self._on_gpu)
        request = ("measure_on_device", host, port, key, self._seconds, *others)
        # To wait for a free device, and then to use it.
        limit = self._seconds + longest(self._seconds, (Path(path).stat().st_size for path in paths))
        for left in reversed(range(_ATTEMPTS)):
            if self._closed.is_set():
                raise WorkerError("the tuning has ended")
            try:
                answer: list[list[float]] = self._connections.call(request, limit)
                return answer
            except WorkerError as error:
                if error.kind == MpqError.__name__:
                    raise MpqError(error.text) from None
                if error.kind == KernelError.__name__ or self._closed.is_set():
                    raise
                self._say(f"{error.text}; what it was measuring is measured again")
                if left == 0 and len(paths) == 1:
                    # Alone there is the tile that is used by default: it is not the tile's fault.
                    raise MpqError(error.text) from None
                if left == 0:
                    raise
        raise AssertionError("there is at least one attempt")

    def close(self) -> None:
        """End the processes and delete the files."""
        self._closed.set()
        self._builds.close()
        self._connections.close()
        self._parts.shutdown(cancel_futures=True)

    def __enter__(self) -> RemoteRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def scaled(timing: Timing, own: Timing, reference: Timing) -> Timing:
    """``timing`` as on the device that took ``reference`` for what its own device took ``own`` for."""
    if timing.error or own.error or reference.error:
        return timing if timing.error else Timing(error=own.error or reference.error)
    rounds = zip(timing.seconds, own.seconds, reference.seconds, strict=False)
    return Timing(tuple(seconds * there / here for seconds, here, there in rounds))
