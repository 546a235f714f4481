"""A connection that cannot hang: TVM's RPC client waits for ever, so it talks to a relay, which has limits.

The relay passes bytes between the client and the device. When the device closes the connection, or an answer takes
longer than :meth:`Relay.limit` allows, it closes the client's end too; the client then fails, and ``reason`` says why.
It is a process: the client waits with Python's lock held where it frees what is on the device.
"""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvm_mpq.device.address import Address

_PROGRAM = Path(__file__).with_name("relay_process.py")
_END_SECONDS = 2.0


class Relay:
    """Opens a connection to ``address``, which ``port`` on the loopback address then stands for, once.

    Raises OSError where nothing answers within ``seconds``.
    """

    def __init__(self, address: Address, seconds: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(_PROGRAM), address.host, str(address.port), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Not ended by the terminal before what it serves is.
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, self._process)
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said.isdecimal():
            raise OSError(said.removeprefix("error ") or "no answer")
        self.port = int(said)

    @property
    def reason(self) -> str:
        """Why the connection ended, or nothing while it lasts."""
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return ""
        assert self._process.stdout is not None
        said = "" if self._process.stdout.closed else self._process.stdout.read().strip()
        return said.removeprefix("error ") or "the connection was closed"

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """What is asked of the device inside has to be answered within ``seconds``."""
        self._tell(f"limit {seconds}")
        yield
        self._tell("free")

    def close(self) -> None:
        """End the connection."""
        self._end()

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
