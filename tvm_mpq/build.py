"""From a module of scheduled kernels to an executable, and what of it takes memory."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import IRModule, relax
from tvm.ir.expr import GenericConst
from tvm.relax.expr_functor import PyExprVisitor, visitor
from tvm.runtime import Executable, Tensor

from tvm_mpq.target import Target
from tvm_mpq.transform.pipeline import build_passes


@dataclass(frozen=True)
class Built:
    """An executable; ``constants`` and ``activations`` are the bytes it holds and plans to hold while it runs."""

    executable: Executable
    constants: int
    activations: int


def build(mod: IRModule, target: Target) -> Built:
    """Compile a lowered module for ``target``."""
    planned = build_passes()(mod)
    sizes = _Sizes()
    sizes.visit_expr(planned["main"])
    executable = relax.build(planned, target.tvm_target(), relax_pipeline=None)
    return Built(executable, sizes.constants, sizes.activations)


def constant_bytes(mod: IRModule) -> int:
    """Bytes of all constants in the module's Relax functions."""
    sizes = _Sizes()
    for _, function in mod.functions_items():
        if isinstance(function, relax.Function):
            sizes.visit_expr(function)
    return sizes.constants


@visitor
class _Sizes(PyExprVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.constants = 0
        self.activations = 0

    def visit_generic_const_(self, op: GenericConst) -> None:
        """Add up a constant tensor's bytes."""
        if isinstance(op.value, Tensor):
            self.constants += op.value.numpy().nbytes

    def visit_call_(self, call: relax.Call) -> None:
        """Add up what the memory plan allocates."""
        if getattr(call.op, "name", "") in ("relax.vm.alloc_storage", "relax.memory.alloc_storage"):
            self.activations += int(call.args[0].values[0])
        super().visit_call_(call)
