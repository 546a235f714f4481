"""Running a package on this machine."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.threads import check_threads, run_with_threads
from tvm_mpq.runtime.tracer import Tracer, tensors, time_whole
from tvm_mpq.runtime.weights import expanded_weights
from tvm_mpq.target import machine_features

Array = npt.NDArray[Any]


class Session:
    """A loaded package, ready to run. Nothing else may run in the same process while it is timed."""

    def __init__(self, package: Package | str | Path, threads: int | None = None) -> None:
        """Load ``package`` (or the file of that name) for ``threads`` threads, all available ones by default.

        Raises MpqError for a package made for instructions that this machine lacks, a bad number of threads,
        and a library that cannot be loaded.
        """
        self.package = package if isinstance(package, Package) else Package.load(package)
        self.threads = check_threads(threads)
        check_features(self.package)
        self._gpu = first_gpu() if self.package.metadata.target.tvm.get("kind") == "cuda" else None
        self._library = run_with_threads(self.threads, self._load)
        self._machine = run_with_threads(self.threads, self._start)
        self._weights = run_with_threads(self.threads, self._expand)

    def _load(self) -> Any:
        import tvm

        # A package's kernels call libm's functions and name no library that has them.
        ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
        with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as folder:
            # The library stays mapped after its file is gone.
            path = Path(folder) / "model.so"
            path.write_bytes(self.package.library)
            try:
                return tvm.runtime.load_module(str(path))
            except Exception as error:
                raise MpqError(f"cannot load the package's library: {_first_line(error)}") from error

    def _start(self) -> Any:
        import tvm
        from tvm.runtime.vm import VirtualMachine  # not of tvm.relax, which needs the compiler

        try:
            on_gpu = self._gpu is not None
            # What the virtual machine itself computes with, shapes, stays in this machine's memory.
            machine = VirtualMachine(self._library, [self._gpu, tvm.cpu()] if on_gpu else tvm.cpu())
        except Exception as error:
            raise MpqError(f"cannot load the package's library: {_first_line(error)}") from error
        return_free_memory()
        return machine

    def _expand(self) -> list[Any]:
        """The tensors that ``main`` takes behind the inputs: weights that the file holds in fewer than 8 bits."""
        try:
            weights = expanded_weights(self._machine, self.package.weights, self._gpu)
        except Exception as error:
            raise MpqError(f"cannot expand the package's weights: {_first_line(error)}") from error
        return_free_memory()
        return weights

    def run(self, inputs: Mapping[str, Array] | Array) -> list[Array]:
        """The network's outputs, each an array of the shape and dtype the package's metadata names.

        ``inputs`` gives an array for each input, or one array for a network with one input. Raises MpqError
        for names, shapes or dtypes that do not fit.
        """
        arrays = self._checked(inputs)
        return run_with_threads(self.threads, lambda: self._run(arrays))

    def time(
        self, inputs: Mapping[str, Array] | Array, repeat: int = 20, warmup: int = 3
    ) -> npt.NDArray[np.float64]:
        """Seconds of each of ``repeat`` runs, float64 [repeat], after ``warmup`` that are not counted.

        Timed is the call of the compiled network alone: inputs are in place and outputs are not copied.
        Raises MpqError as :meth:`run` does, and for a ``repeat`` below 1.
        """
        check_repeat(repeat)
        arrays = self._checked(inputs)
        return run_with_threads(
            self.threads,
            lambda: time_whole(
                self._machine,
                [*tensors(arrays, self._gpu), *self._weights],
                repeat,
                warmup,
                (lambda: None) if self._gpu is None else self._gpu.sync,
            ),
        )

    def tracer(self) -> Tracer:
        """A second copy of the network, whose every kernel call can be timed; this one stays undisturbed.

        Raises MpqError for a package for a GPU, where a call returns before its kernel has run.
        """
        if self._gpu is not None:
            raise MpqError(
                "kernels on a GPU cannot be timed one by one: benchmark the package without --profile"
            )
        return Tracer(self.threads, run_with_threads(self.threads, self._start), self._checked, self._weights)

    def _run(self, arrays: list[Array]) -> list[Array]:
        result = self._machine["main"](*tensors(arrays, self._gpu), *self._weights)
        single = len(self.package.metadata.outputs) == 1 and hasattr(result, "numpy")
        return [tensor.numpy() for tensor in ([result] if single else result)]

    def _checked(self, inputs: Mapping[str, Array] | Array) -> list[Array]:
        """The arrays in the network's order, of its shapes and dtypes."""
        specs = self.package.metadata.inputs
        names = ", ".join(repr(spec.name) for spec in specs)
        if isinstance(inputs, np.ndarray):
            if len(specs) != 1:
                raise MpqError(f"the network has {len(specs)} inputs: give an array for each of {names}")
            inputs = {specs[0].name: inputs}
        for name in inputs:
            if all(name != spec.name for spec in specs):
                raise MpqError(f"the network has no input {name!r}; it has {names}")
        arrays = []
        for spec in specs:
            if spec.name not in inputs:
                raise MpqError(f"the input {spec.name!r} is missing; the network has {names}")
            array = np.asarray(inputs[spec.name])
            if array.shape != spec.shape:
                raise MpqError(
                    f"the input {spec.name!r} has shape {list(array.shape)}; "
                    f"the package was compiled for {list(spec.shape)}"
                )
            if array.dtype != np.dtype(spec.dtype):
                raise MpqError(f"the input {spec.name!r} is {array.dtype}; the network takes {spec.dtype}")
            arrays.append(np.ascontiguousarray(array))
        return arrays


def first_gpu() -> Any:
    """The first GPU, as TVM names it."""
    import tvm

    return tvm.cuda(0)


def return_free_memory() -> None:
    """Give the system the memory that the C library keeps for later.

    TVM copies the weights several times while it loads them; without this the copies stay resident.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def check_repeat(repeat: int) -> None:
    """Raise MpqError unless there is at least one run to time."""
    if repeat < 1:
        raise MpqError(f"cannot time {repeat} runs: ask for at least 1")


def check_features(package: Package) -> None:
    """Raise MpqError that names the instructions ``package`` needs and this machine lacks."""
    target, here = package.metadata.target, machine_features()
    lacking = [feature for feature in target.features if feature not in here]
    if lacking:
        raise MpqError(
            f"the package was compiled for target {target.name!r} and this machine lacks "
            f"{', '.join(lacking)}; compile it again with --target host"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
