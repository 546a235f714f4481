"""Between int32 accumulators and 8-bit tensors, in a form that gives the same bytes on every target.

``q = clip(rint(float32(acc) · multiplier) + zero_point, 0, 255)``: one int→float conversion, one multiplication and
one rounding, each exact or correctly rounded in IEEE 754, with nothing that a compiler could contract into a fused
multiply-add (a float addition after the multiplication could be). The zero-point is added as an integer.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from tvm import te, tirx
from tvm.tirx import Expr

from tvm_mpq.kernels.avx2_requantize import avx2_requantize
from tvm_mpq.kernels.neon_requantize import neon_requantize

Unit: TypeAlias = Literal["neon", "avx2"]
"""Vector units whose instructions LLVM does not find for itself."""
_LIMIT = 2.0**30


def round_to_int(x: Expr) -> Expr:
    """Nearest int32, ties to even; ``x`` float32 must lie inside int32's range.

    LLVM's ``lrint`` is one instruction (cvtps2dq, fcvtns) where rounding and then converting are two.
    """
    return tirx.call_llvm_pure_intrin("int32", "llvm.lrint", x)


def saturate(q: Expr) -> Expr:
    """An int32 clipped to 0 … 255 as uint8: the form that vector units pack with saturation at no cost."""
    return te.max(te.min(q, tirx.const(255, "int32")), tirx.const(0, "int32")).astype("uint8")


def requantize(accumulator: Expr, multiplier: Expr, zero_point: Expr, unit: Unit | None = None) -> Expr:
    """int32 accumulator (bias included) → uint8 on the output grid; ``unit``: in the instructions of one."""
    if unit is not None:
        return {"neon": neon_requantize, "avx2": avx2_requantize}[unit](accumulator, multiplier, zero_point)
    return saturate(round_to_int(accumulator.astype("float32") * multiplier) + zero_point)


def requantize_vector(accumulator: Expr, multiplier: Expr, zero_point: Expr, lanes: int) -> Expr:
    """:func:`requantize` of ``lanes`` accumulators as one vector: TVM takes the rounding apart into scalars."""
    return _code_vector(tirx.Cast(f"float32x{lanes}", accumulator) * multiplier, zero_point, lanes)


def quantize(x: Expr, inverse_scale: Expr, zero_point: Expr) -> Expr:
    """float32 → uint8: ``clip(rint(clip(x · inverse_scale, ±2^30)) + zero_point, 0, 255)``.

    The inner clip keeps the conversion to int32 defined for any finite x.
    """
    limit = tirx.const(_LIMIT, "float32")
    return saturate(round_to_int(te.max(te.min(x * inverse_scale, limit), -limit)) + zero_point)


def quantize_vector(x: Expr, inverse_scale: Expr, zero_point: Expr, lanes: int) -> Expr:
    """:func:`quantize` of ``lanes`` floats as one vector."""
    scaled = x * tirx.Broadcast(inverse_scale, lanes)
    low, high = (tirx.Broadcast(tirx.const(bound, "float32"), lanes) for bound in (-_LIMIT, _LIMIT))
    return _code_vector(te.max(te.min(scaled, high), low), zero_point, lanes)


def _code_vector(scaled: Expr, zero_point: Expr, lanes: int) -> Expr:
    rounded = tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.lrint", scaled)
    q = rounded + tirx.Broadcast(zero_point, lanes)
    low, high = (tirx.Broadcast(tirx.const(bound, "int32"), lanes) for bound in (0, 255))
    return tirx.Cast(f"uint8x{lanes}", te.max(te.min(q, high), low))


def dequantize(q: Expr, scale: Expr, zero_point: Expr) -> Expr:
    """uint8 → float32: ``float32(q − zero_point) · scale``."""
    return (q.astype("int32") - zero_point).astype("float32") * scale
