"""Calls of kernels laid out in the memory of an emulated PC, as TVM's calling convention wants them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import tvm
from emulated_assembly import for_bochs
from tvm.tirx import PrimFunc

from tvm_mpq.target import load_target
from tvm_mpq.transform.small_buffers import compile_kernels

BASE = 0x800000
"""Where constants and code lie (emulator/machine.ld)."""
BUFFERS = 0x10000000
"""Where the calls' outputs lie."""
GUARD = 64
FILL = 0xA5
"""What the guest fills buffers with: an output and the ``GUARD`` bytes at its ends."""
_CPU, _TENSOR_POINTER = 1, 7  # kDLCPU, kTVMFFIDLTensorPtr
_TYPE_CODES = {"i": 0, "u": 1, "f": 2}


@dataclass(frozen=True)
class Buffer:
    """A tensor in the guest's memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Call:
    """``arguments`` is the address of ``count`` arguments."""

    name: str
    function: int
    arguments: int
    count: int


@dataclass
class Program:
    """Kernels called one after the other; a call may read what an earlier one wrote."""

    functions: list[PrimFunc] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    memory: bytearray = field(default_factory=bytearray)
    """The bytes from BASE on."""
    end: int = BUFFERS

    def constant(self, array: np.ndarray) -> Buffer:
        array = np.ascontiguousarray(array)
        return Buffer(self._store(array.tobytes()), array.shape, array.dtype)

    def call(self, name: str, function: PrimFunc, *inputs: Buffer) -> Buffer:
        """Call ``function`` on ``inputs`` and a new buffer as its last parameter, which is returned.

        Errors are told with ``name``.
        """
        last = function.params[-1]
        out = Buffer(self.end + GUARD, tuple(int(extent) for extent in last.shape), np.dtype(str(last.dtype)))
        self.end = -(-(out.address + out.nbytes + GUARD) // 64) * 64
        place = next((i for i, known in enumerate(self.functions) if known.same_as(function)), None)
        if place is None:
            place = len(self.functions)
            self.functions.append(function)
        tensors = [self._tensor(buffer) for buffer in (*inputs, out)]
        arguments = b"".join(struct.pack("<iIQ", _TENSOR_POINTER, 0, tensor) for tensor in tensors)
        self.calls.append(Call(name, place, self._store(arguments), len(tensors)))
        return out

    def kernels(self, target: str) -> str:
        """The functions, named kernel_0, kernel_1 …, in the assembly of ``target``."""
        named = {
            f"kernel_{place}": function.with_attr("global_symbol", f"kernel_{place}")
            for place, function in enumerate(self.functions)
        }
        module = compile_kernels(tvm.IRModule(named), load_target(target).tvm_target()).mod
        return for_bochs(module.inspect_source("asm"))

    def tables(self, outputs: list[Buffer], tasks: int) -> str:
        """The tables that emulator/machine.s reads; ``host.bin`` holds the memory."""
        lines = [".section .host", '.incbin "host.bin"', ".data", ".balign 8"]
        lines += [".globl calls, outputs, buffers, tasks", "calls:"]
        lines += [f".quad __tvm_ffi_kernel_{c.function}, {c.arguments}, {c.count}, 0" for c in self.calls]
        lines += [".quad 0", "outputs:"]
        lines += [f".quad {out.address - GUARD}, {out.nbytes + 2 * GUARD}" for out in outputs]
        lines += [".quad 0", f"buffers: .quad {BUFFERS}, {self.end - BUFFERS}", f"tasks: .long {tasks}", ""]
        return "\n".join(lines)

    def _tensor(self, buffer: Buffer) -> int:
        code, bits = _TYPE_CODES[buffer.dtype.kind], 8 * buffer.dtype.itemsize
        dims = len(buffer.shape)
        shape = self._store(struct.pack(f"<{dims}q", *buffer.shape))
        steps = np.cumprod([1, *buffer.shape[:0:-1]])[::-1] if dims else ()
        strides = self._store(struct.pack(f"<{dims}q", *steps))
        fields = (buffer.address, _CPU, 0, dims, code, bits, 1, shape, strides, 0)
        return self._store(struct.pack("<QiiiBBHQQQ", *fields))

    def _store(self, data: bytes) -> int:
        address = BASE + len(self.memory)
        self.memory += data + bytes(-len(data) % 64)
        return address
