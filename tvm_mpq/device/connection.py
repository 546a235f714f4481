"""Connections to devices: directly, or to one of a tracker's that has a key; each call with a time limit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from tvm_mpq.device.address import Address
from tvm_mpq.device.relay import Relay
from tvm_mpq.device.tracker import CONNECT_SECONDS, Tracker
from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256

PREFIX = "tvm_mpq.device."
SLOWEST = 200_000
"""Bytes a second that an upload may take at worst."""


class DeviceLostError(MpqError):
    """The device went away, or gave no answer in time: another one may do."""


@dataclass(frozen=True)
class Place:
    """Where a device is: at ``address``, or any that has ``key`` at the tracker there."""

    address: Address
    key: str = ""

    def __str__(self) -> str:
        return f"{self.key} at tracker {self.address}" if self.key else f"device {self.address}"

    def count(self) -> int:
        """How many devices there are, whether they are free or not. Raises MpqError where the tracker knows none."""
        return Tracker(self.address).count(self.key) if self.key else 1


class Connection:
    """A connection to a device that runs ``tvm-mpq rpc-server``.

    Calls raise DeviceLostError where the device does not answer within ``seconds``, and MpqError for what it refuses.
    ``longest`` are the seconds after which the device itself ends the connection (0: never), whatever runs then: a
    kernel that never ends would keep it from everybody else.
    """

    def __init__(self, place: Place, seconds: float, longest: float = 0.0) -> None:
        self.place, self.seconds = place, seconds
        self.address, match = place.address, ""
        if place.key:
            self.address, match = Tracker(place.address).request(place.key, seconds)
        self.name = f"the device {self.address}" + (f" ({place.key})" if place.key else "")
        try:
            self._relay = Relay(self.address, CONNECT_SECONDS)
        except OSError as error:
            said = str(error)
            raise DeviceLostError(f"cannot reach {self.name}: {said}") from None
        from tvm import rpc

        self._remote = self._limited(
            CONNECT_SECONDS,
            lambda: rpc.connect("127.0.0.1", self._relay.port, match, longest),
            "does not serve: another client may have it, or it is no RPC server",
        )
        self._files: dict[str, str] = {}
        try:
            self.about = self.call("describe")
        except DeviceLostError:
            raise
        except MpqError as error:
            if "describe" in str(error):
                raise MpqError(f"{self.name} runs a server that is no 'tvm-mpq rpc-server'") from None
            raise

    def call(self, function: str, *arguments: Any) -> dict[str, Any]:
        """The answer of one of the functions of :mod:`tvm_mpq.device.functions` that answer in JSON."""
        answer = json.loads(str(self.raw(function, *arguments)))
        if "error" in answer:
            raise MpqError(f"{self.name}: {answer['error']}")
        return dict(answer)

    def raw(self, function: str, *arguments: Any) -> Any:
        """What a function of the device gives."""
        return self._limited(self.seconds, lambda: self._remote.get_function(PREFIX + function)(*arguments))

    def tensor(self, array: Any) -> Any:
        """``array`` as a tensor on the device."""
        import tvm

        seconds = self.seconds + array.nbytes / SLOWEST
        return self._limited(seconds, lambda: tvm.runtime.tensor(array, self._remote.cpu(0)))

    def array(self, tensor: Any) -> Any:
        """The content of a tensor on the device."""
        return self._limited(self.seconds, tensor.numpy)

    def upload(self, content: bytes, suffix: str) -> str:
        """Put ``content`` into the connection's folder, once; gives its name there. It is checked by hash."""
        digest = sha256(content)
        name = PurePath(digest[:16]).with_suffix(suffix).name
        if self._files.get(name) == digest:
            return name
        free = int(self.about["free_disk"])
        if free < 2 * len(content):
            raise MpqError(f"{self.name} has {free} bytes of disk left, too few for {len(content)}")
        seconds = self.seconds + len(content) / SLOWEST
        self._limited(seconds, lambda: self._remote.upload(bytearray(content), name))
        if self.call("sha256", name)["sha256"] != digest:
            raise DeviceLostError(f"{self.name} did not store what was sent to it: its disk may be full")
        self._files[name] = digest
        return name

    def close(self) -> None:
        """Give the device back."""
        self._relay.close()

    def _limited(self, seconds: float, work: Any, excuse: str = "") -> Any:
        try:
            with self._relay.limit(seconds):
                return work()
        except MpqError:
            raise
        except Exception as error:
            reason = self._relay.reason
            if reason:
                lost = f"{self.name} was lost: {reason}"
                raise DeviceLostError(f"{self.name} {excuse} ({reason})" if excuse else lost) from None
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise MpqError(f"{self.name}: {lines[-1].strip()}") from error
