"""The step of AVX-512 BF16 as a tensor intrinsic: ``C[l] += A[0] · B[l, 0] + A[1] · B[l, 1]`` in float32.

TVM turns every bfloat16 into float32 or uint16 before it makes code, so that no operand of LLVM's intrinsic could be
written in its IR. A function in LLVM's own IR takes words of 32 bits instead and is inlined; the kernel that uses it
imports it.
"""

from __future__ import annotations

from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from tvm_mpq.kernels.narrow_weights import widened

LANES = 16
IMPORTED = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define linkonce_odr hidden <16 x float> @tvm_mpq_vdpbf16ps(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) #0 {
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}

attributes #0 = { alwaysinline nounwind "target-features"="+avx512f,+avx512bf16" }
"""
"""LLVM IR that a kernel with this step imports."""


def _description() -> PrimFunc:
    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((2,), "uint16", offset_factor=1),
        B: T.Buffer((1, LANES, 2), "uint16", offset_factor=1),
        C: T.Buffer((LANES,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:LANES], A[0:2], B[0:1, 0:LANES, 0:2])
            T.writes(C[0:LANES])
            for i in T.serial(0, LANES):
                for k in T.serial(0, 2):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + widened(A[vk], "bfloat16") * widened(B[0, vi, vk], "bfloat16")

    return description


def _implementation() -> PrimFunc:
    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((2,), "uint16", offset_factor=1),
        B: T.Buffer((1, LANES, 2), "uint16", offset_factor=1),
        C: T.Buffer((LANES,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:LANES], A[0:2], B[0:1, 0:LANES, 0:2])
            T.writes(C[0:LANES])
            C[T.ramp(T.int32(0), 1, LANES)] = T.call_pure_extern(
                "tvm_mpq_vdpbf16ps",
                C.vload([0], f"float32x{LANES}"),
                T.broadcast(T.reinterpret(A.vload([0], "uint16x2"), dtype="int32"), LANES),
                T.reinterpret(B.vload([0, 0, 0], f"uint16x{2 * LANES}"), dtype=f"int32x{LANES}"),
                dtype=f"float32x{LANES}",
            )

    return implementation


@cache
def register() -> str:
    """Register the intrinsic with TVM (once a process) and return its name for ``Schedule.tensorize``."""
    name = "tvm_mpq.vdpbf16ps"
    TensorIntrin.register(name, _description(), _implementation(), override=True)
    return name
