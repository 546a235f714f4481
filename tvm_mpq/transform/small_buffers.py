"""TVM's lowering of kernels to what LLVM takes, with tiles of results where LLVM can keep them in registers.

LowerTVMBuiltin leaves buffers of less than 1 KB on the stack, where LLVM makes registers of them, and asks the runtime
for larger ones. A tile of 28 vectors of 64 bytes is larger: each multiplication then reads its sum from memory and
writes it back, unless LLVM proves that no other pointer leads there, which it does for some kernels. So buffers that
all vector registers together could hold are marked to stay.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import IRModule, tirx
from tvm.runtime import Executable
from tvm.s_tir.pipeline import default_s_tir_pipeline, finalize_host_passes
from tvm.tirx import AllocBuffer, AttrStmt, For, IfThenElse, PrimFunc, SeqStmt, Stmt, While

PIPELINE = "tvm_mpq"
"""The name by which TVM's builders take the lowering (``tir_pipeline``)."""
MOST_BYTES = 32 * 64
"""AVX-512's registers, of all instruction sets the largest together."""
_KEEP = "disable_lower_builtin"


@tvm.transform.module_pass(opt_level=0, name="KeepSmallBuffers")
class KeepSmallBuffers:
    """alloc(buffer) → alloc(buffer) with ``disable_lower_builtin``, where it has at most ``MOST_BYTES``.

    For lowered functions on a processor, before LowerTVMBuiltin.
    """

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass."""
        result = mod.clone()
        for variable, function in mod.functions_items():
            if isinstance(function, PrimFunc):
                result.update_func(variable, function.with_body(_kept(function.body)))
        return result


def _kept(statement: Stmt) -> Stmt:
    if isinstance(statement, SeqStmt):
        return SeqStmt([_kept(each) for each in statement.seq])
    if isinstance(statement, AllocBuffer) and _bytes(statement) <= MOST_BYTES:
        return AllocBuffer(
            statement.buffer, {**statement.annotations, _KEEP: tirx.const(1, "int32")}, statement.span
        )
    if isinstance(statement, For):
        return For(
            statement.loop_var,
            statement.min,
            statement.extent,
            statement.kind,
            _kept(statement.body),
            statement.thread_binding,
            statement.annotations,
            statement.step,
            statement.span,
        )
    if isinstance(statement, IfThenElse):
        otherwise = None if statement.else_case is None else _kept(statement.else_case)
        return IfThenElse(statement.condition, _kept(statement.then_case), otherwise, statement.span)
    if isinstance(statement, AttrStmt):
        return AttrStmt(
            statement.node, statement.attr_key, statement.value, _kept(statement.body), statement.span
        )
    if isinstance(statement, While):
        return While(statement.condition, _kept(statement.body), statement.span)
    return statement


def _bytes(statement: AllocBuffer) -> float:
    shape = statement.buffer.shape
    if not all(isinstance(extent, tirx.IntImm) for extent in shape):
        return math.inf
    dtype = statement.buffer.dtype
    return math.prod(int(extent) for extent in shape) * -(-dtype.bits * dtype.lanes // 8)


def _finalize_host_passes() -> tvm.transform.Pass:
    return tvm.transform.Sequential([KeepSmallBuffers(), finalize_host_passes()])


def _pipeline() -> tuple[Any, Any, Any]:
    passes, _, finalize_device = default_s_tir_pipeline()
    return passes, _finalize_host_passes, finalize_device


tirx.register_tir_pipeline(PIPELINE, _pipeline)


def compile_kernels(kernels: IRModule, target: tvm.target.Target) -> Executable:
    """``kernels``, scheduled functions, as code for ``target``: what they are in a package."""
    return tvm.compile(kernels, target=target, tir_pipeline=PIPELINE)
