"""The table of instructions: how each instruction set multiplies, as one small record a row.

The templates read nothing else about a machine. A new instruction set is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm_mpq.errors import MpqError
from tvm_mpq.kernels import tensor_intrinsics


@dataclass(frozen=True)
class Intrinsic:
    """How one multiply-accumulate step is done.

    ``activation`` is the dtype that the step reads (activations of another dtype are staged first), ``weight`` and
    ``accumulator`` the others; one step makes ``lanes`` results from ``group`` products each. ``family`` names the
    tensor intrinsic, or is None where LLVM finds the instruction itself in vectorized code (fused multiply-add).
    ``registers`` counts the vector registers that hold a tile.
    """

    name: str
    activation: str
    weight: str
    accumulator: str
    lanes: int
    group: int
    registers: int
    family: str | None = None

    def tensor_intrinsic(self) -> str | None:
        """The registered name for ``Schedule.tensorize``, or None when the step is plain vector code."""
        if self.family is None:
            return None
        return tensor_intrinsics.register(self.family, self.activation, self.lanes, self.group)


def _float(name: str, lanes: int, registers: int) -> Intrinsic:
    return Intrinsic(name, "float32", "float32", "float32", lanes, 1, registers)


FLOAT = {
    "avx512vnni": _float("fma512", 16, 32),
    "avx512": _float("fma512", 16, 32),
    "avxvnni": _float("fma256", 8, 16),
    "avx2": _float("fma256", 8, 16),
    "generic": _float("mul128", 4, 16),
}
INTEGER = {
    "avx512vnni": Intrinsic("vpdpbusd512", "uint8", "int8", "int32", 16, 4, 32, "vpdpbusd"),
    "avx512": Intrinsic("pmaddwd512", "int16", "int8", "int32", 16, 2, 32, "pmaddwd"),
    "avxvnni": Intrinsic("vpdpbusd256", "uint8", "int8", "int32", 8, 4, 16, "vpdpbusd"),
    "avx2": Intrinsic("pmaddwd256", "int16", "int8", "int32", 8, 2, 16, "pmaddwd"),
    # Plain vector code that any LLVM target takes; LLVM picks the widening multiply.
    "generic": Intrinsic("mul128", "int16", "int8", "int32", 4, 1, 16),
}

# Winograd's transformed weights need int16: machines with instructions for four bytes are faster direct.
WINOGRAD_INTEGER = {
    "avx512": Intrinsic("pmaddwd512", "int16", "int16", "int32", 16, 2, 32, "pmaddwd"),
    "avx2": Intrinsic("pmaddwd256", "int16", "int16", "int32", 8, 2, 16, "pmaddwd"),
}


_NARROWER = {"avx512vnni": "avxvnni", "avx512": "avx2"}
"""Half as wide on the same machine, for channel counts that fill no wide vector."""


def intrinsic(instruction: str, weight: str, channels: int) -> Intrinsic:
    """The row for a target's ``instruction``, the weights' dtype ("int8" or "float32") and output ``channels``.

    Where the channels fill only half-wide vectors, it is the half-wide row with the machine's registers. Raises
    MpqError for an instruction that the table does not have.
    """
    table = FLOAT if weight == "float32" else INTEGER
    if instruction not in table:
        raise MpqError(f"unknown instruction {instruction!r} in the target: use one of {', '.join(table)}")
    row = table[instruction]
    if channels % row.lanes != 0 and instruction in _NARROWER:
        narrow = table[_NARROWER[instruction]]
        if channels % narrow.lanes == 0:
            return replace(narrow, registers=row.registers)
    return row


def winograd_intrinsic(instruction: str, in_dtype: str) -> Intrinsic | None:
    """The row for a Winograd kernel on inputs of ``in_dtype``, or None where the direct kernel is faster."""
    return WINOGRAD_INTEGER.get(instruction) if in_dtype == "uint8" else FLOAT.get(instruction)
