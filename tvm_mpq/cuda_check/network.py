"""A whole network on the emulated device: TVM's virtual machine, host code and memory plan, with our kernels below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from tvm_mpq.build import build
from tvm_mpq.cuda_check.device import emulated_device
from tvm_mpq.cuda_check.emulator import Check
from tvm_mpq.runtime.weights import EXPAND
from tvm_mpq.target import Target, host_target

Array = npt.NDArray[Any]


def on_this_host(target: Target) -> Target:
    """``target``'s GPU beside this machine's processor, so that the host code runs here; the kernels are the same."""
    host = host_target()
    return replace(target, mcpu=host.mcpu, mtriple=host.mtriple, mattr=host.mattr, abi=host.abi)


class EmulatedNetwork:
    """A lowered module, compiled for a ``target`` with a GPU and run on this machine's processor."""

    def __init__(self, lowered: IRModule, target: Target, check: Check = Check.FIRST) -> None:
        """Compile; raises MpqError where g++ is missing and for a source that it refuses."""
        with emulated_device(check) as self._device:
            built = build(lowered, on_this_host(target))
            executable = built.executable
        self._cuda = tvm.cuda(0)
        self._machine = relax.VirtualMachine(executable, self._cuda)
        self._weights: Sequence[Any] = ()
        if built.weights:
            stream = np.frombuffer(built.weights, np.uint8)
            self._weights = list(self._machine[EXPAND](self._tensor(stream)))

    @property
    def source(self) -> str:
        """The CUDA source of all kernels."""
        return "\n".join(self._device.sources)

    def run(self, *arrays: Array) -> list[Array]:
        """The outputs for the inputs, in the network's order. Raises KernelFault for what a kernel does wrong."""
        result = self._machine["main"](*map(self._tensor, arrays), *self._weights)
        return [tensor.numpy() for tensor in ([result] if hasattr(result, "numpy") else result)]

    def check(self, which: Check) -> None:
        """From now on check these launches."""
        self._device.check(which)

    def calls(self) -> dict[str, tuple[int, int]]:
        """How often each kernel was launched, and how many of these launches were checked."""
        return self._device.calls()

    def _tensor(self, array: Array) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(array), self._cuda)
