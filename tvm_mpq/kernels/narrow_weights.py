"""Weights of float kernels that take less than 32 bits in memory and are widened in registers; bfloat16 activations.

``int8`` are integers with a multiplier for each output channel. ``float16`` is converted by the processor (F16C,
AVX-512), ``float16_bits`` is the same where it cannot: there its bits are a uint16 and the conversion is arithmetic,
for finite numbers. ``bfloat16`` is the upper half of a float32, a uint16 too.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx import Expr

_AS_BITS = ("bfloat16", "float16_bits")


def stored_dtype(weight: str) -> str:
    """The dtype of an array of such weights."""
    return "uint16" if weight in _AS_BITS else weight


def widened(value: Expr, weight: str, lanes: int = 1) -> Expr:
    """``value``, one weight or a vector of ``lanes``, as float32."""

    def dtype(name: str) -> str:
        return name if lanes == 1 else f"{name}x{lanes}"

    def constant(number: float, name: str) -> Expr:
        scalar = tirx.const(number, name)
        return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)

    if weight == "float32":
        return value
    if weight not in _AS_BITS:
        return tirx.Cast(dtype("float32"), value)
    bits = tirx.Cast(dtype("uint32"), value)
    if weight == "bfloat16":
        return tirx.reinterpret(dtype("float32"), bits << constant(16, "uint32"))
    # The exponents' biases differ by 112; the multiplication also makes subnormal halves normal.
    magnitude = tirx.reinterpret(
        dtype("float32"), (bits & constant(0x7FFF, "uint32")) << constant(13, "uint32")
    )
    magnitude = magnitude * constant(2.0**112, "float32")
    sign = (bits & constant(0x8000, "uint32")) << constant(16, "uint32")
    return tirx.reinterpret(dtype("float32"), tirx.reinterpret(dtype("uint32"), magnitude) | sign)


def to_bfloat16(value: Expr) -> Expr:
    """The bits, uint16, of a float32 rounded to the nearest bfloat16, ties to even; a NaN stays one."""
    bits = tirx.reinterpret("uint32", value)
    odd = (bits >> tirx.const(16, "uint32")) & tirx.const(1, "uint32")
    nearest = (bits + (odd + tirx.const(0x7FFF, "uint32"))) >> tirx.const(16, "uint32")
    is_nan = (bits & tirx.const(0x7FFFFFFF, "uint32")) > tirx.const(0x7F800000, "uint32")
    return tirx.Select(is_nan, tirx.const(0x7FC0, "uint32"), nearest).astype("uint16")
