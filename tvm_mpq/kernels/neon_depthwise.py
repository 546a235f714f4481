"""A tap of a depthwise convolution on NEON: ``C[l] += A[l] · B[l]`` of uint8 by int8, widened to int16 once.

LLVM would widen both to int32 before it multiplies; products of int16 that are added to int32 are one instruction.
"""

from __future__ import annotations

from functools import cache

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

_WIDTHS = (16, 8, 4)


def _description(lanes: int) -> PrimFunc:
    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((lanes,), "uint8", offset_factor=1),
        B: T.Buffer((lanes,), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes], B[0:lanes])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    vi = T.axis.spatial(lanes, i)
                    C[vi] = C[vi] + T.cast(A[vi], "int32") * T.cast(B[vi], "int32")

    return description


def _implementation(lanes: int) -> PrimFunc:
    def products(A: T.Buffer, B: T.Buffer) -> Expr:
        a = T.cast(A.vload([0], f"uint8x{lanes}"), f"int16x{lanes}")
        b = T.cast(B.vload([0], f"int8x{lanes}"), f"int16x{lanes}")
        smull = T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.smull.v4i32")
        fours = [
            T.call_llvm_pure_intrin(smull, _four(a, part), _four(b, part), dtype="int32x4")
            for part in range(lanes // 4)
        ]
        return tirx.Shuffle(fours, [tirx.const(lane, "int32") for lane in range(lanes)])

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((lanes,), "uint8", offset_factor=1),
        B: T.Buffer((lanes,), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes], B[0:lanes])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = C.vload([0], f"int32x{lanes}") + products(A, B)

    return implementation


def _four(vector: Expr, part: int) -> Expr:
    return tirx.Shuffle([vector], [tirx.const(4 * part + lane, "int32") for lane in range(4)])


@cache
def register(lanes: int) -> str:
    """Register the tap for ``lanes`` channels (once a process) and return its name for ``Schedule.tensorize``."""
    name = f"tvm_mpq.neon_tap.{lanes}"
    TensorIntrin.register(name, _description(lanes), _implementation(lanes), override=True)
    return name


def tap(vector: int) -> str | None:
    """The intrinsic for ``vector`` channels, or None where there is none."""
    return register(vector) if vector in _WIDTHS else None
