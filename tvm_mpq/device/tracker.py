"""What is asked of TVM's RPC tracker, which knows devices by their keys."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tvm_mpq.device.address import Address
from tvm_mpq.errors import MpqError

CONNECT_SECONDS = 30.0
"""Enough for an emulated device to start the process that serves a connection."""


class Tracker:
    """The tracker at ``address``; every question raises MpqError where it does not answer."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def count(self, key: str) -> int:
        """How many devices have ``key``, free or not. Raises MpqError that lists the keys there are for none."""
        with self._asking() as connection:
            return self._count(connection, key)

    def request(self, key: str, seconds: float) -> tuple[Address, str]:
        """The address of a free device with ``key``, and the word that opens it; waits up to ``seconds`` for one."""
        from tvm.rpc import base

        with self._asking() as connection:
            self._count(connection, key)
            connection.settimeout(seconds)
            base.sendjson(connection, [base.TrackerCode.REQUEST, key, "", 1])
            try:
                code, answer = base.recvjson(connection)
            except TimeoutError:
                raise MpqError(f"no device with the key {key!r} became free within {seconds:g} s") from None
        if code != base.TrackerCode.SUCCESS:
            raise MpqError(f"the tracker {self.address} gives no device: {answer}")
        host, port, match = answer
        return Address(host, int(port)), str(match)

    def _count(self, connection: socket.socket, key: str) -> int:
        from tvm.rpc import base

        base.sendjson(connection, [base.TrackerCode.SUMMARY])
        _, summary = base.recvjson(connection)
        keys = [str(info["key"]).removeprefix("server:") for info in summary["server_info"]]
        if key not in keys:
            known = ", ".join(sorted(set(keys))) if keys else "none at all"
            raise MpqError(f"the tracker {self.address} has no device with the key {key!r}: it has {known}")
        return keys.count(key)

    @contextmanager
    def _asking(self) -> Iterator[socket.socket]:
        from tvm.rpc import base

        try:
            with socket.create_connection(self.address, timeout=CONNECT_SECONDS) as connection:
                connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                if struct.unpack("<i", base.recvall(connection, 4))[0] != base.RPC_TRACKER_MAGIC:
                    raise MpqError(f"{self.address} is no RPC tracker")
                yield connection
        except (OSError, struct.error, ValueError, KeyError) as error:
            said = getattr(error, "strerror", None) or str(error) or "it closed the connection"
            raise MpqError(f"cannot ask the tracker {self.address}: {said}") from None
