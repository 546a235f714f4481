"""Requantization as NEON does it: one operation until vectors are made, then instructions of four and eight lanes.

``clip(rint(float32(acc) · multiplier) + zero_point, 0, 255)`` (see ``requantize``) with int16 in between: the rounded
product is narrowed with saturation, the zero-point is added with saturation, and the sum is narrowed to uint8 with
saturation. As 0 ≤ zero_point ≤ 255, what the first two cut off lies outside 0 … 255 with and without it.

LLVM rounds vectors to even as int32 in one instruction (``fcvtns``) only by an intrinsic of exactly four lanes, which
TVM's vectorizer would call with as many as the loop has: it sees one operation, which is lowered after it.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, register_op_attr
from tvm.script import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import CallEffectKind, Expr, register_intrin_lowering

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
    lanes = _lanes(call)
    accumulator, multiplier, zero_point = call.args
    if lanes % 4:
        return _plain(accumulator, multiplier, zero_point, lanes)
    width = 8 if lanes % 8 == 0 else 4
    vectors = [_vector(*(_part(x, first, width) for x in call.args)) for first in range(0, lanes, width)]
    return _join(vectors)


def _vector(accumulator: Expr, multiplier: Expr, zero_point: Expr) -> Expr:
    """Of four or eight lanes."""
    lanes = _lanes(accumulator)
    halves = []
    for first in range(0, lanes, 4):
        product = T.Cast("float32x4", _part(accumulator, first, 4)) * _part(multiplier, first, 4)
        rounded = _call("fcvtns.v4i32.v4f32", "int32x4", product)
        halves.append(_call("sqxtn.v4i16", "int16x4", rounded))
    zero = T.Cast(f"int16x{lanes}", zero_point)
    sums = _call(f"sqadd.v{lanes}i16", f"int16x{lanes}", _join(halves), zero)
    # There is no narrowing of four int16: the upper half repeats the lower.
    whole = sums if lanes == 8 else _join([sums, sums])
    return _part(_call("sqxtun.v8i8", "uint8x8", whole), 0, lanes)


def _plain(accumulator: Expr, multiplier: Expr, zero_point: Expr, lanes: int) -> Expr:
    """For loops whose vectors fill no register."""

    def of(dtype: str) -> str:
        return dtype if lanes == 1 else f"{dtype}x{lanes}"

    def bound(value: int, dtype: str) -> Expr:
        number = tirx.const(value, dtype)
        return number if lanes == 1 else T.broadcast(number, lanes)

    product = T.Cast(of("float32"), accumulator) * multiplier
    rounded = tirx.call_llvm_pure_intrin(of("float32"), "llvm.roundeven", product)
    code = T.Cast(of("int32"), rounded) + zero_point
    code = tirx.max(tirx.min(code, bound(255, "int32")), bound(0, "int32"))
    return T.Cast(of("uint8"), code)


def _lanes(x: Expr) -> int:
    return int(x.ty.dtype.lanes)


def _part(vector: Expr, first: int, count: int) -> Expr:
    """``count`` lanes from ``first`` on."""
    if _lanes(vector) == count:
        return vector
    return tirx.Shuffle([vector], [tirx.const(first + lane, "int32") for lane in range(count)])


def _join(vectors: list[Expr]) -> Expr:
    if len(vectors) == 1:
        return vectors[0]
    lanes = sum(map(_lanes, vectors))
    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in range(lanes)])


def _call(name: str, dtype: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(
        T.llvm_lookup_intrinsic_id(f"llvm.aarch64.neon.{name}"), *arguments, dtype=dtype
    )


tvm_ffi.get_global_func("ir.RegisterOp")(_OPERATION, "See tvm_mpq.kernels.neon_requantize.")
register_op_attr(_OPERATION, "TCallEffectKind", CallEffectKind.Pure.value)
register_op_attr(_OPERATION, "TVectorizable", True)
# Without it TVM warns of every call that it prints, and measured costs go by kernels' text.
register_op_attr(_OPERATION, "TScriptPrinterName", _OPERATION.removeprefix("tirx."))
register_intrin_lowering(_OPERATION, target="llvm", f=_lowered)
