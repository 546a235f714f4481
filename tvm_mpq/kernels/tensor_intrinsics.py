"""The dot-product instructions as tensor intrinsics: what one computes (description) and how (implementation).

Every row computes ``C[l] += Σ_g A[g] · B[l, g]`` for ``lanes`` int32 results l and ``group`` products g.
``A`` is broadcast to all lanes as one 32-bit word, so ``group`` activations fill 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.tirx import Expr, PrimFunc

Multiply = Callable[[Expr, Expr, Expr], Expr]
"""(accumulator int32xL, broadcast activations int32xL, weights int8x(L·group)) → new accumulator int32xL."""


def _description(activation: str, lanes: int, group: int) -> PrimFunc:
    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((group,), activation, offset_factor=1),
        B: T.Buffer((lanes, group), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:group], B[0:lanes, 0:group])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, group):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return description


def _implementation(activation: str, lanes: int, group: int, multiply: Multiply) -> PrimFunc:
    activation_vector = f"{activation}x{group}"
    weight_vector = f"int8x{lanes * group}"
    accumulator_vector = f"int32x{lanes}"

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((group,), activation, offset_factor=1),
        B: T.Buffer((lanes, group), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:group], B[0:lanes, 0:group])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = multiply(
                C.vload([0], accumulator_vector),
                T.broadcast(T.reinterpret(A.vload([0], activation_vector), dtype="int32"), lanes),
                B.vload([0, 0], weight_vector),
            )

    return implementation


def _pmaddwd(lanes: int) -> Multiply:
    """Widen the weights to int16, multiply pairs: exact, no saturating intermediate (SSE2, AVX2, AVX-512BW)."""
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[
        lanes
    ]

    def multiply(accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
        return accumulator + T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id(name),
            T.reinterpret(activations, dtype=f"int16x{2 * lanes}"),
            T.cast(weights, f"int16x{2 * lanes}"),
            dtype=f"int32x{lanes}",
        )

    return multiply


def _vpdpbusd(lanes: int) -> Multiply:
    """AVX-512 VNNI and AVX-VNNI: four u8×s8 products added to each lane, exact (not the saturating form)."""
    name = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}[lanes]

    def multiply(accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
        return T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id(name),
            accumulator,
            T.reinterpret(activations, dtype=f"uint8x{4 * lanes}"),
            weights,
            dtype=f"int32x{lanes}",
        )

    return multiply


def multiply_accumulate(
    family: str | None, accumulator: Expr, activations: Expr, weights: Expr, lanes: int
) -> Expr:
    """One step outside a tensor intrinsic: ``activations`` are broadcast to the lanes already.

    Without a ``family`` it is plain vector arithmetic.
    """
    if family is None:
        return accumulator + activations * weights
    return _FAMILIES[family](lanes)(accumulator, activations, weights)


_FAMILIES: dict[str, Callable[[int], Multiply]] = {"pmaddwd": _pmaddwd, "vpdpbusd": _vpdpbusd}


@cache
def register(family: str, activation: str, lanes: int, group: int) -> str:
    """Register the intrinsic with TVM (once a process) and return its name for ``Schedule.tensorize``."""
    multiply = _FAMILIES[family](lanes)
    name = f"tvm_mpq.{family}.{lanes}x{group}"
    TensorIntrin.register(
        name,
        _description(activation, lanes, group),
        _implementation(activation, lanes, group, multiply),
        override=True,
    )
    return name
