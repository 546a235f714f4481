"""Addresses of devices and trackers."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from tvm_mpq.errors import MpqError


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(option: str, text: str) -> Address:
    """``"10.0.0.7:9090"`` or ``"[::1]:9090"``; raises MpqError that names ``option`` for anything else."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise MpqError(f"{option} needs HOST:PORT, not {text!r}")
    return Address(host, int(port))
