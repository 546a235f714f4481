"""A CUDA device that is this machine's memory and processor: TVM's own host code and virtual machine run on it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import IRModule
from tvm.target import Target

from tvm_mpq.cuda_check.emulator import Check, Emulator, KernelFault
from tvm_mpq.cuda_check.kernels import kernel_infos
from tvm_mpq.cuda_check.limits import limits
from tvm_mpq.errors import MpqError

_CODEGEN = "target.build.cuda"
_DEVICE = "device_api.cuda"

tvm_ffi.register_error("KernelFault", KernelFault)


_emulators: list[Emulator] = []
"""All of this process: TVM never unloads a library, which may call its emulator."""


class EmulatedDevice:
    """The modules that were compiled while the device was there."""

    def __init__(self, check: Check) -> None:
        self.sources: list[str] = []
        self._emulators: list[Emulator] = []
        self._check = check

    def check(self, which: Check) -> None:
        """From now on check these launches."""
        self._check = which
        for emulator in self._emulators:
            emulator.check(which)

    def calls(self) -> dict[str, tuple[int, int]]:
        """How often each kernel was launched, and how many of these launches were checked."""
        return {name: count for emulator in self._emulators for name, count in emulator.calls().items()}

    def build(self, original: Callable[..., Any], module: IRModule, target: Target) -> Any:
        """In place of TVM's code generator: the same source, compiled for this machine."""
        source = str(original(module, target).inspect_source("cuda"))
        emulator = Emulator(
            source, kernel_infos(module), self._check, limits(str(target.attrs["arch"])).shared_block
        )
        emulator.on_fault(_raise)
        self.sources.append(source)
        self._emulators.append(emulator)
        _emulators.append(emulator)
        return tvm.runtime.load_module(str(emulator.path))


@contextlib.contextmanager
def emulated_device(check: Check = Check.FIRST) -> Iterator[EmulatedDevice]:
    """While it lasts, modules built for CUDA targets get kernels that run here, on tensors of ``tvm.cuda()``.

    They do so as long as they live. What they do wrong on the way is a :class:`KernelFault`. Not for a process that
    uses a real device: raises MpqError where TVM has found one.
    """
    device = EmulatedDevice(check)
    _claim_device()
    original = tvm.get_global_func(_CODEGEN)
    tvm_ffi.register_global_func(
        _CODEGEN, lambda module, target: device.build(original, module, target), override=True
    )
    try:
        yield device
    finally:
        tvm_ffi.register_global_func(_CODEGEN, original, override=True)


def _raise(fault: KernelFault) -> None:
    """As TVM's compiled functions raise: note the error, of which their return value tells."""
    library = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
    library.TVMFFIErrorSetRaisedFromCStr(b"KernelFault", str(fault).encode())


@functools.cache
def _claim_device() -> None:
    """Memory of CUDA devices is host memory from now on, for this process."""
    if tvm.get_global_func(_DEVICE, allow_missing=True) is not None:
        raise MpqError("this process uses a real CUDA device; kernels cannot be emulated beside it")
    tvm_ffi.register_global_func(_DEVICE, tvm.get_global_func("device_api.cpu"))
