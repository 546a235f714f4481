"""Requantization as AVX2 does it: narrowed in whole registers, the zero-point added to sixteen results at once.

``clip(rint(float32(acc) · multiplier) + zero_point, 0, 255)`` (see ``requantize``): rounded products are narrowed to
int16 with saturation, the zero-point is added with saturation, and the sums are narrowed to uint8 with saturation. As
0 ≤ zero_point ≤ 255, what the first two cut off lies outside 0 … 255 with and without it.

AVX2 narrows within halves of 128 bits; one permutation of words at the end puts all in order, where LLVM, which narrows
for itself, puts each step in order.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Call
from tvm.script import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr

from tvm_mpq.kernels.late_operation import join, lanes_of, part, plain_requantization, register, saturated
from tvm_mpq.kernels.tensor_intrinsics import call_llvm

_OPERATION = "tirx.mpq_avx2_requantize"


def avx2_requantize(accumulator: Expr, multiplier: Expr, zero_point: Expr) -> Expr:
    """uint8 of an int32 accumulator (bias included), a float32 multiplier and an int32 zero-point."""
    return tirx.call_intrin("uint8", _OPERATION, accumulator, multiplier, zero_point)


def _lowered(call: Call) -> Expr:
    lanes = lanes_of(call)
    accumulator, multiplier, zero_point = call.args
    if lanes == 8:  # LLVM narrows half a register as well
        return saturated(_rounded(accumulator, multiplier) + zero_point)
    if lanes % 16:
        return plain_requantization(accumulator, multiplier, zero_point, lanes)
    width = 32 if lanes % 32 == 0 else 16
    return join([_vector(*(part(x, first, width) for x in call.args)) for first in range(0, lanes, width)])


def _vector(accumulator: Expr, multiplier: Expr, zero_point: Expr) -> Expr:
    """Of 16 or 32 lanes."""
    lanes = lanes_of(accumulator)
    sums = []
    zero = T.Cast("int16x16", part(zero_point, 0, 16))
    for first in range(0, lanes, 16):
        rounded = [_rounded(part(accumulator, at, 8), part(multiplier, at, 8)) for at in (first, first + 8)]
        narrow = call_llvm("llvm.x86.avx2.packssdw", "int16x16", *rounded)
        sums.append(call_llvm("llvm.sadd.sat.v16i16", "int16x16", narrow, zero))
    # Words of four: those of each register's low half, then those of the high halves.
    bytes_ = call_llvm("llvm.x86.avx2.packuswb", "int8x32", sums[0], sums[-1])
    words = [0, 4, 1, 5, 2, 6, 3, 7] if lanes == 32 else [0, 4, 1, 5]
    ordered = tirx.Shuffle([T.reinterpret(bytes_, dtype="int32x8")], [tirx.const(w, "int32") for w in words])
    return T.reinterpret(ordered, dtype=f"uint8x{lanes}")


def _rounded(accumulator: Expr, multiplier: Expr) -> Expr:
    product = T.Cast("float32x8", accumulator) * multiplier
    return call_llvm("llvm.x86.avx.cvt.ps2dq.256", "int32x8", product)


register(_OPERATION, _lowered)
