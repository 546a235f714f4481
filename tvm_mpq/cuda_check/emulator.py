"""A compiled module's kernels, launched on NumPy arrays."""

from __future__ import annotations

import ctypes
import enum
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.cuda_check.compile import compile_source
from tvm_mpq.cuda_check.kernels import KernelInfo
from tvm_mpq.cuda_check.symbols import shared_symbols
from tvm_mpq.errors import MpqError

Array = npt.NDArray[Any]


class KernelFault(MpqError):  # noqa: N818 (the kernel's, not the program's)
    """A kernel did what is undefined on a device, or what it cannot do there.

    ``kind`` is "race", "out of bounds", "misaligned", "uninitialized", "barrier divergence", "warp divergence",
    "order", "launch", "signal" or "unsupported".
    """

    def __init__(self, message: str) -> None:
        """``message`` is the kernel, the kind and what happened, with colons between."""
        super().__init__(message)
        self.kernel, self.kind, *_ = [*message.split(": "), "", ""]


class Check(enum.IntEnum):
    """Which launches run checked: twice, in opposite orders, every access of memory looked at."""

    NEVER = 0
    FIRST = 1
    ALWAYS = 2


_TELL = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


class _Any(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", ctypes.c_int64))


class _Launch(ctypes.Structure):
    _fields_ = (("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3), ("shared", ctypes.c_uint64))


class _Failure(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_char * 32), ("message", ctypes.c_char * 480), ("where", ctypes.c_void_p))


class _SharedArray(ctypes.Structure):
    _fields_ = (
        *(("begin", ctypes.c_size_t), ("end", ctypes.c_size_t)),
        *(("kernel", ctypes.c_char_p), ("name", ctypes.c_char_p)),
    )


class _Kernel(ctypes.Structure):
    _fields_ = (
        *(("name", ctypes.c_char_p), ("call", ctypes.c_void_p), ("parameters", ctypes.c_int)),
        *(("bytes", ctypes.c_void_p), ("tags", ctypes.c_char_p)),
        *(("calls", ctypes.c_uint64), ("checked", ctypes.c_uint64)),
    )


class Emulator:
    """The kernels of one CUDA source on this machine's processor."""

    def __init__(
        self,
        source: str,
        kernels: Sequence[KernelInfo],
        check: Check = Check.FIRST,
        shared_limit: int = 48 << 10,
    ) -> None:
        """Compile ``source``; a block may have ``shared_limit`` bytes of shared memory.

        Raises MpqError as :func:`~tvm_mpq.cuda_check.compile.compile_source` does.
        """
        self.kernels = {kernel.name: index for index, kernel in enumerate(kernels)}
        self._source = compile_source(source, kernels).with_suffix(".cu")
        # A library keeps count of its launches: each emulator has one of its own.
        self._folder = tempfile.TemporaryDirectory(prefix="tvm-mpq-")
        self.path = Path(self._folder.name) / "kernels.so"
        shutil.copyfile(self._source.with_suffix(".so"), self.path)
        self._library = ctypes.CDLL(str(self.path))
        self._library.cuda_check_kernel.restype = ctypes.POINTER(_Kernel)
        self._library.cuda_check_failure.restype = ctypes.POINTER(_Failure)
        self._library.cuda_check_limit(ctypes.c_uint64(shared_limit))
        self._tell_shared()
        self.check(check)

    def check(self, which: Check) -> None:
        """From now on check these launches."""
        self._library.cuda_check_mode(int(which))

    def on_fault(self, tell: Callable[[KernelFault], None]) -> None:
        """Tell of what goes wrong where TVM's code launches the kernels."""
        self._teller = _TELL(lambda name: tell(self.fault(name.decode())))
        self._library.cuda_check_on_fault(self._teller)

    def calls(self) -> dict[str, tuple[int, int]]:
        """How often each kernel was launched, and how many of these launches were checked."""
        return {name: (k.calls, k.checked) for name, k in ((n, self._kernel(n)) for n in self.kernels)}

    def launch(
        self,
        name: str,
        arguments: Sequence[Array | int | float],
        grid: Sequence[int],
        block: Sequence[int],
        shared: int = 0,
    ) -> None:
        """Run a kernel on arrays, which it changes in place.

        ``grid`` and ``block`` are extents x, y, z (missing ones are 1), ``shared`` the bytes of dynamic shared memory.
        Raises KernelFault, whose arrays are then in an undefined state.
        """
        values = (_Any * max(len(arguments), 1))()
        sizes = (ctypes.c_uint64 * max(len(arguments), 1))()
        for i, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray):
                if not argument.flags.c_contiguous:
                    raise ValueError("arguments of kernels must be contiguous")
                values[i].type, values[i].value, sizes[i] = 4, argument.ctypes.data, argument.nbytes
            elif isinstance(argument, float):
                values[i].type, values[i].value = 3, int(np.float64(argument).view(np.int64))
            else:
                values[i].type, values[i].value = 1, argument
        extents = [(*each, 1, 1)[:3] for each in (grid, block)]
        how = _Launch(*((ctypes.c_uint32 * 3)(*each) for each in extents), shared)
        if self._library.cuda_check_launch(
            ctypes.byref(self._kernel(name)), values, sizes, ctypes.byref(how)
        ):
            raise self.fault(name)

    def fault(self, kernel: str) -> KernelFault:
        """What the last launch did wrong."""
        failure = self._library.cuda_check_failure().contents
        message = failure.message.decode()
        line = self._line(failure.where)
        return KernelFault(f"{kernel}: {failure.kind.decode()}: {message}{line}")

    def _kernel(self, name: str) -> _Kernel:
        kernel = self._library.cuda_check_kernel(self.kernels[name]).contents
        assert isinstance(kernel, _Kernel)
        return kernel

    def _tell_shared(self) -> None:
        symbols, dynamic = shared_symbols(self.path)
        table = (_SharedArray * max(len(symbols), 1))(
            *(_SharedArray(s.begin, s.end, s.kernel.encode(), s.name.encode()) for s in symbols)
        )
        self._symbols = table  # the library reads its names later
        self._library.cuda_check_shared(table, len(symbols), ctypes.c_size_t(dynamic))

    def _line(self, where: int | None) -> str:
        """The source line that an address belongs to."""
        if not where:
            return ""
        base = _base_address(self.path)
        if base is None:
            return ""
        command = ["addr2line", "-e", str(self.path), hex(where - 1 - base)]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        name, _, number = said.partition(" ")[0].rpartition(":")
        if not number.isdigit() or Path(name) != self._source:
            return ""
        lines = self._source.read_text().splitlines()
        return f" (line {number}: {lines[int(number) - 1].strip()[:160]})"


def _base_address(library: Path) -> int | None:
    """Where a loaded library begins in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(library)):
            return int(line.split("-")[0], 16)
    return None
