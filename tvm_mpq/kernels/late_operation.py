"""Operations that stay one call until TVM has made vectors, and are written in a machine's instructions then."""

from __future__ import annotations

from collections.abc import Callable

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, register_op_attr
from tvm.script import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import CallEffectKind, Expr, register_intrin_lowering


def register(operation: str, lower: Callable[[Call], Expr]) -> None:
    """Make ``operation`` (``tirx.…``) known to TVM as a pure function of elements that ``lower`` replaces for LLVM."""
    tvm_ffi.get_global_func("ir.RegisterOp")(operation, f"See {lower.__module__}.")
    register_op_attr(operation, "TCallEffectKind", CallEffectKind.Pure.value)
    register_op_attr(operation, "TVectorizable", True)
    # Without it TVM warns of every call that it prints, and measured costs go by kernels' text.
    register_op_attr(operation, "TScriptPrinterName", operation.removeprefix("tirx."))
    register_intrin_lowering(operation, target="llvm", f=lower)


def plain_requantization(accumulator: Expr, multiplier: Expr, zero_point: Expr, lanes: int) -> Expr:
    """``clip(rint(float32(acc) · multiplier) + zero_point, 0, 255)`` where vectors fill no register."""

    def of(dtype: str) -> str:
        return dtype if lanes == 1 else f"{dtype}x{lanes}"

    product = T.Cast(of("float32"), accumulator) * multiplier
    rounded = tirx.call_llvm_pure_intrin(of("float32"), "llvm.roundeven", product)
    return saturated(T.Cast(of("int32"), rounded) + zero_point)


def saturated(codes: Expr) -> Expr:
    """uint8 of int32 codes, those outside 0 … 255 being the nearer bound."""
    lanes = lanes_of(codes)
    low, high = (tirx.const(bound, "int32") for bound in (0, 255))
    if lanes == 1:
        return T.Cast("uint8", tirx.max(tirx.min(codes, high), low))
    low, high = T.broadcast(low, lanes), T.broadcast(high, lanes)
    return T.Cast(f"uint8x{lanes}", tirx.max(tirx.min(codes, high), low))


def lanes_of(x: Expr) -> int:
    """How many elements the vector ``x`` has."""
    return int(x.ty.dtype.lanes)


def part(vector: Expr, first: int, count: int) -> Expr:
    """``count`` lanes from ``first`` on."""
    if lanes_of(vector) == count:
        return vector
    return tirx.Shuffle([vector], [tirx.const(first + lane, "int32") for lane in range(count)])


def join(vectors: list[Expr]) -> Expr:
    """One vector of them all."""
    if len(vectors) == 1:
        return vectors[0]
    lanes = sum(map(lanes_of, vectors))
    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in range(lanes)])
