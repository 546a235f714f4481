"""Built networks in two copies, one traced and one undisturbed, here or on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvm_mpq.build import Built
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.runtime.machine import Machine
from tvm_mpq.runtime.metadata import Storage
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import return_free_memory
from tvm_mpq.runtime.threads import run_with_threads
from tvm_mpq.runtime.tracer import Trace, Tracer, tensors, time_whole
from tvm_mpq.runtime.weights import expanded_weights
from tvm_mpq.target import Target
from tvm_mpq.tensor_spec import TensorSpec

Inputs = Mapping[str, npt.NDArray[Any]]


class Placed(Protocol):
    """A network where it can be timed."""

    def trace(self, inputs: Inputs, repeat: int) -> Trace:
        """The kernel calls of ``repeat`` runs of the traced copy."""

    def whole(self, inputs: Inputs, repeat: int, warmup: int) -> npt.NDArray[np.float64]:
        """Seconds of ``repeat`` runs of the undisturbed copy, after ``warmup``."""


class Here:
    """On this machine, where nothing has to be linked."""

    def __init__(self, built: Built, threads: int) -> None:
        def start() -> Any:
            machine = relax.VirtualMachine(built.executable, tvm.cpu())
            return_free_memory()
            return machine

        self._threads = threads
        self._machine = run_with_threads(threads, start)
        self._weights = run_with_threads(threads, lambda: expanded_weights(self._machine, built.weights))
        traced = run_with_threads(threads, start)
        self._tracer = Tracer(threads, traced, lambda given: list(given.values()), self._weights)

    def trace(self, inputs: Inputs, repeat: int) -> Trace:
        """See :class:`Placed`."""
        return self._tracer.trace(inputs, repeat)

    def whole(self, inputs: Inputs, repeat: int, warmup: int) -> npt.NDArray[np.float64]:
        """See :class:`Placed`."""
        arguments = [*tensors(list(inputs.values())), *self._weights]
        return run_with_threads(self._threads, lambda: time_whole(self._machine, arguments, repeat, warmup))


class OnDevice:
    """On the device ``machine``: linked into a package and sent there."""

    def __init__(
        self, built: Built, target: Target, inputs: Sequence[TensorSpec], machine: Machine, threads: int
    ) -> None:
        package = Package.create(
            name="costs",
            inputs=inputs,
            outputs=[TensorSpec("unread", (1,), "float32")],
            target=target,
            plan=PrecisionPlan({"costs": FP32}),
            library=built.library(),
            weights=built.weights,
            model_sha256="",
            operators=(),
            storage=Storage(0, 0, 0, 0),
        )
        self._session = machine.session(package, threads)
        self._tracer = self._session.tracer()

    def trace(self, inputs: Inputs, repeat: int) -> Trace:
        """See :class:`Placed`."""
        return self._tracer.trace(inputs, repeat)

    def whole(self, inputs: Inputs, repeat: int, warmup: int) -> npt.NDArray[np.float64]:
        """See :class:`Placed`."""
        return self._session.time(inputs, repeat, warmup)
