"""Where packages run: this machine, or another that looks the same (:mod:`tvm_mpq.device`)."""

from __future__ import annotations

from typing import Protocol

from tvm_mpq.cpu import cpu_features, cpu_name
from tvm_mpq.gpu import FoundGpu, driver_device, gpu_features
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.resident import resident_bytes
from tvm_mpq.runtime.session import Session, check_features
from tvm_mpq.runtime.threads import check_threads


class Machine(Protocol):
    """What the harness needs of a place to run packages at."""

    @property
    def cpu(self) -> str:
        """The processor's name."""

    @property
    def features(self) -> frozenset[str]:
        """The processor's features, and whether there is a GPU."""

    @property
    def gpu(self) -> FoundGpu | None:
        """The first NVIDIA GPU that it has a driver for."""

    def threads(self, threads: int | None) -> int:
        """``threads``, or all there are for None; raises MpqError for a number that cannot be had."""

    def session(self, package: Package, threads: int | None) -> Session:
        """``package``, loaded there."""

    def resident(self, package: Package, threads: int) -> int:
        """The growth of memory in a fresh process from loading ``package`` to after its first run."""

    def check(self, package: Package) -> None:
        """Raise MpqError that names the instructions ``package`` needs and the machine lacks."""


class ThisMachine:
    """The machine that this program runs on."""

    cpu = property(lambda self: cpu_name())
    features = property(lambda self: cpu_features() | gpu_features())
    gpu = property(lambda self: driver_device())

    def threads(self, threads: int | None) -> int:
        """See :class:`Machine`."""
        return check_threads(threads)

    def session(self, package: Package, threads: int | None) -> Session:
        """See :class:`Machine`."""
        return Session(package, threads)

    def resident(self, package: Package, threads: int) -> int:
        """See :class:`Machine`."""
        return resident_bytes(package, threads)

    def check(self, package: Package) -> None:
        """See :class:`Machine`."""
        check_features(package)
