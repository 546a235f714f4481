"""How CUDA spells what kernels write as an intrinsic of LLVM: the definitions are shared, the words differ."""

from __future__ import annotations

from functools import cache

from tvm import tirx
from tvm.target import codegen
from tvm.tirx import Expr

_SPELLINGS = {"llvm.lrint": "__float2int_rn"}
"""Both round to the nearest int32, ties to even."""


@cache
def register() -> None:
    """Teach TVM (once a process) to lower these intrinsics for CUDA."""
    known = {codegen.llvm_lookup_intrinsic_id(name): spelling for name, spelling in _SPELLINGS.items()}

    def lower(call: tirx.Call) -> Expr:
        number = int(call.args[0].value)
        if number not in known:
            raise AssertionError(f"a kernel for CUDA calls LLVM's intrinsic {number}")
        return tirx.call_pure_extern(str(call.ty.dtype), known[number], *call.args[1:])

    tirx.register_intrin_lowering("tirx.call_llvm_pure_intrin", target="cuda", f=lower)
