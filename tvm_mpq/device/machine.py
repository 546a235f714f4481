"""A device as a place to run packages at: the same as this machine, seen from the harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tvm_mpq.device.connection import Connection, DeviceLostError, Place
from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import FoundGpu
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Array, Session, check_repeat
from tvm_mpq.runtime.tracer import Trace, Tracer

T = TypeVar("T")
_ATTEMPTS = 3
"""A tracker may have another device of the same key when one is lost."""
_NAMES = {"asimddp": "dotprod", "asimdhp": "fp16"}
"""What people call the features that Linux has other names for."""


class DeviceMachine:
    """The device at ``place``; each call may take ``seconds``.

    One that is lost is replaced by another of the same key, where there is a tracker.
    """

    def __init__(self, place: Place, seconds: float = 300.0) -> None:
        self.place, self.seconds = place, seconds
        self._connection: Connection | None = None

    @property
    def cpu(self) -> str:
        """The processor's name."""
        return self.attempt(lambda connection: str(connection.about["cpu"]))

    @property
    def features(self) -> frozenset[str]:
        """The processor's features, and whether there is a GPU."""
        return self.attempt(lambda connection: frozenset(connection.about["features"]))

    @property
    def gpu(self) -> FoundGpu | None:
        """The first NVIDIA GPU that it has a driver for."""
        about = self.attempt(lambda connection: connection.about.get("gpu"))
        if about is None:
            return None
        major, minor = map(int, about["capability"])
        return FoundGpu(str(about["name"]), (major, minor))

    def threads(self, threads: int | None) -> int:
        """``threads``, or all that the device has for None; raises MpqError for what it cannot have."""
        most = self.attempt(lambda connection: int(connection.about["processors"]))
        if threads is not None and not 1 <= threads <= most:
            raise MpqError(f"cannot run with {threads} threads: {self._connected().name} offers 1 to {most}")
        return most if threads is None else threads

    def session(self, package: Package, threads: int | None) -> Session:
        """``package`` loaded on the device."""
        return DeviceSession(self, package, self.threads(threads))

    def resident(self, package: Package, threads: int) -> int:
        """The memory that ``package`` takes, in bytes."""

        def measure(connection: Connection) -> int:
            name = connection.upload(package.to_bytes(), ".tar")
            return int(connection.call("resident", name, threads)["bytes"])

        return self.attempt(measure)

    def attempt(self, work: Callable[[Connection], T]) -> T:
        """``work`` on a connection; where it is lost, on one to another device, from the beginning."""
        attempts = _ATTEMPTS if self.place.key else 1
        for left in reversed(range(attempts)):
            try:
                return work(self._connected())
            except DeviceLostError:
                self.close()
                if not left:
                    raise
        raise AssertionError("there is at least one attempt")

    def check(self, package: Package) -> None:
        """Raise MpqError that names the instructions ``package`` needs and the device lacks."""
        target, here = package.metadata.target, self.features
        lacking = [_NAMES.get(f, f) for f in target.features if f not in here]
        if lacking:
            raise MpqError(
                f"this device lacks {', '.join(lacking)}: {self._connected().name} is {self.cpu}, "
                f"and the package was compiled for target {target.name!r}"
            )

    def close(self) -> None:
        """Give the device back."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self.place, self.seconds)
        return self._connection


class DeviceSession(Session):
    """A package on a device; it is sent again where another device takes over."""

    def __init__(self, machine: DeviceMachine, package: Package, threads: int) -> None:
        self.package, self.threads = package, threads
        self._device = machine
        self._handle: tuple[Connection, int] | None = None
        machine.attempt(self._open)

    def run(self, inputs: Mapping[str, Array] | Array) -> list[Array]:
        """The network's outputs, computed by the device."""
        arrays = self._checked(inputs)

        def work(connection: Connection) -> list[Array]:
            handle = self._ready(connection, arrays)
            count = int(connection.call("run", handle)["outputs"])
            return [connection.array(connection.raw("output", handle, index)) for index in range(count)]

        return self._device.attempt(work)

    def time(
        self, inputs: Mapping[str, Array] | Array, repeat: int = 20, warmup: int = 3
    ) -> npt.NDArray[np.float64]:
        """Seconds of each of ``repeat`` runs, by the device's own clock: the network between is not in them."""
        check_repeat(repeat)
        arrays = self._checked(inputs)

        def work(connection: Connection) -> npt.NDArray[np.float64]:
            handle = self._ready(connection, arrays)
            return np.array(connection.call("time", handle, repeat, warmup)["seconds"], np.float64)

        return self._device.attempt(work)

    def tracer(self) -> Tracer:
        """The network on the device again, whose kernel calls are timed there."""
        return _DeviceTracer(self)

    def trace(self, inputs: Mapping[str, Array], repeat: int, warmup: int) -> Trace:
        """The seconds of the kernel calls of ``repeat`` runs."""
        arrays = self._checked(inputs)

        def work(connection: Connection) -> Trace:
            answer = connection.call("trace", self._ready(connection, arrays), repeat, warmup)
            kernels, arguments = tuple(answer["kernels"]), tuple(answer["arguments"])
            return Trace(kernels, arguments, np.array(answer["seconds"], np.float64))

        return self._device.attempt(work)

    def _open(self, connection: Connection) -> int:
        if self._handle is None or self._handle[0] is not connection:
            self._device.check(self.package)
            name = connection.upload(self.package.to_bytes(), ".tar")
            self._handle = connection, int(connection.call("open", name, self.threads)["handle"])
        return self._handle[1]

    def _ready(self, connection: Connection, arrays: list[Array]) -> int:
        handle = self._open(connection)
        for spec, array in zip(self.package.metadata.inputs, arrays, strict=True):
            connection.raw("set_input", handle, spec.name, connection.tensor(array))
        return handle


class _DeviceTracer(Tracer):
    def __init__(self, session: DeviceSession) -> None:
        self.threads = session.threads
        self._session = session

    def trace(self, inputs: Mapping[str, Array], repeat: int, warmup: int = 3) -> Trace:
        """See :meth:`tvm_mpq.runtime.tracer.Tracer.trace`."""
        return self._session.trace(inputs, repeat, warmup)
