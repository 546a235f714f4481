"""RPC servers for tests: started, waited for, and ended with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tvm_mpq.device.address import Address

REPOSITORY = Path(__file__).parents[1]
EMULATOR = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvm-mpq" / "arm-emulator" / "python"
)


@dataclass
class Server:
    address: Address
    process: subprocess.Popen[str]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """The device is gone, with what it was just doing."""
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()


def start(processor: str = "", *arguments: str) -> subprocess.Popen[str]:
    """A server on any port, on this machine or on the emulated ``processor``."""
    python = str(EMULATOR) if processor else sys.executable
    return subprocess.Popen(
        [python, "-m", "tvm_mpq.device.server", "--port", "0", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "TVM_MPQ_CPU": processor,
            "TVM_USE_RUNTIME_LIB": "1",
        },
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def serving(processes: Sequence[subprocess.Popen[str]]) -> Iterator[list[Server]]:
    """The servers, once they listen; they are ended afterwards."""
    try:
        yield [Server(_listening(process), process) for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _listening(process: subprocess.Popen[str]) -> Address:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on "), line
    host, _, port = line.split()[2].rstrip(",").rpartition(":")
    return Address(host, int(port))


@contextlib.contextmanager
def tracking() -> Iterator[Address]:
    """A tracker of TVM's."""
    from tvm.rpc.tracker import Tracker

    tracker = Tracker(host="127.0.0.1", port=9790, port_end=9890, silent=True)
    try:
        yield Address("127.0.0.1", tracker.port)
    finally:
        tracker.terminate()


def wait_for(condition: object, seconds: float = 20.0, pause: float = 0.05) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(pause)
