"""The tuner's end of worker processes: requests with a time limit, and a pool of them for building."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tvm_mpq


class WorkerError(Exception):
    """What a request failed with: an exception in the worker, of the class ``kind``, its death, or the time limit."""

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(f"{kind}: {text}" if kind else text)
        self.text, self.kind = text, kind


class Worker:
    """A process of :mod:`tvm_mpq.tuning.worker`, started when it is first asked, and again after it died.

    ``environment`` are variables that it gets beside those of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, request: Sequence[Any], limit: float) -> Any:
        """The worker's answer to [function, arguments …], within ``limit`` seconds; raises WorkerError otherwise."""
        process = self.process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(list(request)).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(_line(process, time.monotonic() + limit))
        except TimeoutError:
            self.close()
            raise WorkerError(f"it took more than {limit:g} s") from None
        except OSError:
            self.close()
            raise WorkerError("the process died") from None
        if "error" in answer:
            raise WorkerError(answer["error"], answer["kind"])
        return answer["value"]

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(tvm_mpq.__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tvm_mpq.tuning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self._environment, "PYTHONPATH": os.pathsep.join(paths)},
        )
        return self.process


class WorkerPool:
    """``count`` workers that share requests; ``environment`` as of :class:`Worker`."""

    def __init__(self, count: int, environment: Mapping[str, str] | None = None) -> None:
        self._workers = [Worker(environment) for _ in range(count)]
        # Those that have just worked are asked first: a worker that is never needed is never started.
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count)

    def map(self, requests: Sequence[Sequence[Any]], limit: float) -> list[Any]:
        """The answer to each request, or the WorkerError it failed with."""

        def answer(request: Sequence[Any]) -> Any:
            try:
                return self.call(request, limit)
            except WorkerError as error:
                return error

        return list(self._threads.map(answer, requests))

    def call(self, request: Sequence[Any], limit: float) -> Any:
        """The answer of a worker that is free, or becomes it; raises WorkerError as :meth:`Worker.call` does."""
        worker = self._idle.get()
        try:
            return worker.call(request, limit)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()


def _line(process: subprocess.Popen[bytes], end: float) -> bytes:
    """One line of the process's output; raises TimeoutError at the time ``end``, OSError if the output ends before."""
    assert process.stdout is not None
    handle, line = process.stdout.fileno(), b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([handle], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(handle, 1 << 16)
        if not part:
            raise OSError("the output ended")
        line += part
    return line
