"""Requantization of two vectors of AVX-512, narrowed in whole registers (see :mod:`tvm_mpq.kernels.avx2_requantize`).

Two registers of sixteen take five instructions of the two ports that there are for them after their rounding, where
each by itself takes four: an addition, a maximum, and a narrowing store of two.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr

from tvm_mpq.kernels.tensor_intrinsics import call_llvm

LANES = 16


def requantize_pair(accumulators: list[Expr], multipliers: list[Expr], zero_point: Expr) -> Expr:
    """uint8x32 of two int32x16 (biases included), two float32x16 and an int32 zero-point of 0 to 255."""
    rounded = [
        call_llvm("llvm.lrint", f"int32x{LANES}", T.Cast(f"float32x{LANES}", each) * multiplier)
        for each, multiplier in zip(accumulators, multipliers, strict=True)
    ]
    narrow = call_llvm("llvm.x86.avx512.packssdw.512", "int16x32", *rounded)
    zero = T.broadcast(T.Cast("int16", zero_point), 32)
    total = T.bind(call_llvm("llvm.sadd.sat.v32i16", "int16x32", narrow, zero))
    bytes_ = call_llvm("llvm.x86.avx512.packuswb.512", "int8x64", total, total)
    # Each quarter of the register has four bytes of the first, four of the second, and both again.
    words = [tirx.const(4 * quarter + half, "int32") for half in range(2) for quarter in range(4)]
    return T.reinterpret(tirx.Shuffle([T.reinterpret(bytes_, dtype="int32x16")], words), dtype="uint8x32")
