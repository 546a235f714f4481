"""Time built kernels on a device: runs in a worker process, so that a device that hangs can hang nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tvm_mpq.device.address import Address
from tvm_mpq.device.connection import SLOWEST, Connection, DeviceLostError, Place
from tvm_mpq.device.tracker import CONNECT_SECONDS
from tvm_mpq.errors import MpqError


class KernelError(Exception):
    """A kernel failed on the device, which goes on."""


def measure_on_device(
    host: str, port: int, key: str, seconds: float, libraries: Sequence[str], *others: Any
) -> list[list[float]]:
    """What :func:`~tvm_mpq.runtime.kernel_timing.measure_kernels` gives on the device at HOST:PORT.

    With a ``key`` a tracker is there, and the device is one of its free ones. Each connection is a new one, which the
    tracker gives out, so that devices may come and go, and several programs may share them. Raises DeviceLostError,
    KernelError, and MpqError where there is no such device.
    """
    contents = [Path(library).read_bytes() for library in libraries]
    connection = Connection(Place(Address(host, port), key), seconds, longest(seconds, map(len, contents)))
    try:
        names = [connection.upload(content, ".so") for content in contents]
        try:
            return list(connection.call("measure", json.dumps([names, *others]))["seconds"])
        except DeviceLostError:
            raise
        except MpqError as error:
            raise KernelError(str(error)) from None
    finally:
        connection.close()


def longest(seconds: float, sizes: Iterable[int]) -> float:
    """The seconds that a connection may last in which files of ``sizes`` bytes are sent and measured once."""
    return CONNECT_SECONDS + 2 * seconds + sum(sizes) / SLOWEST
