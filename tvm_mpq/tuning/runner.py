"""Build and time tiles on this machine. Devices are measured by :mod:`tvm_mpq.tuning.remote_runner`."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tvm_mpq.cpu import cpu_name
from tvm_mpq.cuda.linking import linking_environment
from tvm_mpq.cuda.nvcc import working_nvcc
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.runtime.threads import available_threads
from tvm_mpq.target import Target
from tvm_mpq.tuning.process import Worker, WorkerError, WorkerPool
from tvm_mpq.tuning.record import tile_to_json

_BUILD_SECONDS = 120.0
_MEASURE_SECONDS = 120.0


@dataclass(frozen=True)
class Timing:
    """Seconds of a call in each round, or what the tile failed with and no seconds.

    There may be fewer rounds of a tile far slower than the first of its batch, which the others are compared with.
    """

    seconds: tuple[float, ...] = ()
    error: str = ""

    @property
    def median(self) -> float | None:
        """Of the rounds; None where it failed."""
        return statistics.median(self.seconds) if self.seconds else None


Job = tuple[KernelSpec, Tile]


class Runner(Protocol):
    """Where tiles are measured."""

    @property
    def cpu(self) -> str:
        """The name of the processor, or GPU, that runs the kernels."""

    def measure(self, jobs: Sequence[Job], rounds: int) -> list[Timing]:
        """Time each job in each of ``rounds`` rounds, the jobs interleaved."""

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the machine."""


TimeLibraries = Callable[[list[str], list[Any], int], list[list[float]]]
"""Times the kernels of library files with such parameters in so many rounds; raises WorkerError where it cannot."""


class Builds:
    """Builds jobs on all processors, has ``time`` measure them, and finds out which of them is at fault for a crash."""

    def __init__(self, target: Target, time: TimeLibraries) -> None:
        self._time = time
        self._how: tuple[Any, ...] = ("build", target.tvm_dict())
        self._folder = tempfile.TemporaryDirectory(prefix="tvm-mpq-tune-")
        environment: dict[str, str] = {}
        if target.gpu is not None:
            self._how = ("build_cuda", target.tvm_dict(), target.gpu.architectures, working_nvcc())
            environment = linking_environment(Path(self._folder.name))
        self._builders = WorkerPool(available_threads(), environment)
        self._numbers = itertools.count()

    def measure(self, jobs: Sequence[Job], rounds: int) -> list[Timing]:
        """See :class:`Runner`."""
        paths = [str(Path(self._folder.name) / f"{next(self._numbers)}.so") for _ in jobs]
        function, *details = self._how
        requests = [
            (function, spec.to_json(), tile_to_json(tile), *details, path)
            for (spec, tile), path in zip(jobs, paths, strict=True)
        ]
        built = self._builders.map(requests, _BUILD_SECONDS)
        result = [Timing(error=str(value)) if isinstance(value, WorkerError) else Timing() for value in built]
        good = [i for i, timing in enumerate(result) if not timing.error]
        try:
            seconds = self._time([paths[i] for i in good], [built[i] for i in good], rounds) if good else []
        except WorkerError as error:
            if len(jobs) > 2:
                result = self._one_by_one(jobs, rounds)
            else:
                result = [timing if timing.error else Timing(error=str(error)) for timing in result]
        else:
            for i, values in zip(good, seconds, strict=True):
                result[i] = Timing(tuple(values))
        for path in paths:
            Path(path).unlink(missing_ok=True)
        return result

    def _one_by_one(self, jobs: Sequence[Job], rounds: int) -> list[Timing]:
        """After a crash: each job beside the first, so that only the one that crashes is lost."""
        (alone,) = self.measure(jobs[:1], rounds)
        if alone.error:
            return [alone] * len(jobs)
        pairs = [self.measure([jobs[0], job], rounds) for job in jobs[1:]]
        return [alone, *(second for _, second in pairs)]

    def close(self) -> None:
        """End the processes and delete the files."""
        self._builders.close()
        self._folder.cleanup()


class LocalRunner:
    """Builds on all processors, then times in one process with ``threads`` threads while nothing builds.

    Kernels for a GPU are timed on the first one, whose name is ``cpu`` then.
    It does what MetaSchedule's LocalBuilder and LocalRunner do, in the third of the time for small kernels: workers
    stay alive between batches, and a batch is timed interleaved, which cancels most of what else the machine does.
    """

    def __init__(self, target: Target, threads: int, seed: int = 0, cpu: str = "") -> None:
        self.cpu = cpu or cpu_name()
        self._threads, self._seed, self._on_gpu = threads, seed, target.gpu is not None
        self._timer = Worker()
        self._builds = Builds(target, self._time)

    def measure(self, jobs: Sequence[Job], rounds: int) -> list[Timing]:
        """See :class:`Runner`."""
        return self._builds.measure(jobs, rounds)

    def _time(self, paths: list[str], parameters: list[Any], rounds: int) -> list[list[float]]:
        request = ("measure", paths, parameters, self._threads, rounds, self._seed, self._on_gpu)
        answer: list[list[float]] = self._timer.call(request, _MEASURE_SECONDS)
        return answer

    def close(self) -> None:
        """End the processes and delete the files."""
        self._builds.close()
        self._timer.close()

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
