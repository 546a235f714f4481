"""Requantization as NEON does it: one operation until vectors are made, then instructions of four and eight lanes.

``clip(rint(float32(acc) · multiplier) + zero_point, 0, 255)`` (see ``requantize``) with int16 in between: the rounded
product is narrowed with saturation, the zero-point is added with saturation, and the sum is narrowed to uint8 with
saturation. As 0 ≤ zero_point ≤ 255, what the first two cut off lies outside 0 … 255 with and without it.

LLVM rounds vectors to even as int32 in one instruction (``fcvtns``) only by an intrinsic of exactly four lanes, which
TVM's vectorizer would call with as many as the loop has: it sees one operation, which is lowered after it.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Call
from tvm.script import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr

from tvm_mpq.kernels.late_operation import join, lanes_of, part, plain_requantization, register

_OPERATION = "tirx.mpq_neon_requantize"


def neon_requantize(accumulator: Expr, multiplier: Expr, zero_point: Expr) -> Expr:
    """uint8 of an int32 accumulator (bias included), a float32 multiplier and an int32 zero-point."""
    return tirx.call_intrin("uint8", _OPERATION, accumulator, multiplier, zero_point)


def neon_requantize_vector(accumulator: Expr, multiplier: Expr, zero_point: Expr, lanes: int) -> Expr:
    """The same of vectors of ``lanes`` elements, with a scalar zero-point."""
    return tirx.call_intrin(
        f"uint8x{lanes}", _OPERATION, accumulator, multiplier, T.broadcast(zero_point, lanes)
    )


def _lowered(call: Call) -> Expr:
    lanes = lanes_of(call)
    accumulator, multiplier, zero_point = call.args
    if lanes % 4:
        return plain_requantization(accumulator, multiplier, zero_point, lanes)
    width = 8 if lanes % 8 == 0 else 4
    vectors = [_vector(*(part(x, first, width) for x in call.args)) for first in range(0, lanes, width)]
    return join(vectors)


def _vector(accumulator: Expr, multiplier: Expr, zero_point: Expr) -> Expr:
    """Of four or eight lanes."""
    lanes = lanes_of(accumulator)
    halves = []
    for first in range(0, lanes, 4):
        product = T.Cast("float32x4", part(accumulator, first, 4)) * part(multiplier, first, 4)
        rounded = _call("fcvtns.v4i32.v4f32", "int32x4", product)
        halves.append(_call("sqxtn.v4i16", "int16x4", rounded))
    zero = T.Cast(f"int16x{lanes}", zero_point)
    sums = _call(f"sqadd.v{lanes}i16", f"int16x{lanes}", join(halves), zero)
    # There is no narrowing of four int16: the upper half repeats the lower.
    whole = sums if lanes == 8 else join([sums, sums])
    return part(_call("sqxtun.v8i8", "uint8x8", whole), 0, lanes)


def _call(name: str, dtype: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(
        T.llvm_lookup_intrinsic_id(f"llvm.aarch64.neon.{name}"), *arguments, dtype=dtype
    )


register(_OPERATION, _lowered)
