"""From a module of scheduled kernels to an executable, and what of it takes memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, relax
from tvm.ir.expr import GenericConst
from tvm.relax.expr_functor import PyExprVisitor, visitor
from tvm.runtime import Executable, Tensor

from tvm_mpq.cuda.linking import link_cuda
from tvm_mpq.cuda.source import executable as cuda_executable
from tvm_mpq.linker import link_executable
from tvm_mpq.runtime.weights import EXPAND
from tvm_mpq.target import Target, architecture
from tvm_mpq.transform.lift_weights import STREAM
from tvm_mpq.transform.pipeline import build_passes
from tvm_mpq.transform.small_buffers import PIPELINE


@dataclass(frozen=True)
class Built:
    """A planned module, and the stream of bit-packed weights that its function ``expand_weights`` takes.

    ``tvm_target`` are the TVM target's fields, ``architectures`` those of the GPUs that machine code is made for.
    ``constants`` and ``activations`` are the bytes it holds and plans to hold while it runs, ``expanded`` those of the
    weights made of the stream.
    """

    planned: IRModule
    tvm_target: Mapping[str, Any]
    constants: int
    activations: int
    weights: bytes = b""
    expanded: int = 0
    architectures: tuple[str, ...] = ()

    @functools.cached_property
    def executable(self) -> Executable:
        """The code, which runs in this process unless it is for another machine."""
        if self.tvm_target["kind"] == "cuda":
            return cuda_executable(self.planned, self.tvm_target)
        target = tvm.target.Target(dict(self.tvm_target))
        return relax.build(self.planned, target, relax_pipeline=None, tir_pipeline=PIPELINE)

    def library(self) -> bytes:
        """The code as a shared library; raises MpqError where a linker or a compiler is missing."""
        if self.tvm_target["kind"] == "cuda":
            return link_cuda(self.planned, self.tvm_target, self.architectures)
        return link_executable(self.executable, architecture(str(self.tvm_target["mtriple"])))

    @property
    def file_weights(self) -> int:
        """Bytes of all weights as a package stores them."""
        return self.constants + len(self.weights)

    @property
    def resident_weights(self) -> int:
        """Bytes of all weights at run time."""
        return self.constants + self.expanded


def build(mod: IRModule, target: Target) -> Built:
    """Compile a lowered module for ``target``."""
    weights, expanded = b"", 0
    if mod.attrs is not None and STREAM in mod.attrs:
        weights = mod.attrs[STREAM].numpy().tobytes()
        expanded = sum(tensor_bytes(field) for field in mod[EXPAND].ret_ty.fields)
        mod = mod.without_attr(STREAM)
    planned = build_passes()(mod)
    sizes = _Sizes()
    sizes.visit_expr(planned["main"])
    target.tvm_target()  # raises for a processor that LLVM does not know
    architectures = () if target.gpu is None else target.gpu.architectures
    return Built(
        planned, target.tvm_dict(), sizes.constants, sizes.activations, weights, expanded, architectures
    )


def stored_weights(mod: IRModule) -> int:
    """Bytes of all weights of a lowered module as a package stores them."""
    stream = 0
    if mod.attrs is not None and STREAM in mod.attrs:
        stream = mod.attrs[STREAM].numpy().nbytes
    sizes = _Sizes()
    sizes.visit_expr(mod["main"])
    return sizes.constants + stream


def tensor_bytes(ty: relax.TensorType) -> int:
    """Bytes of a tensor of constant shape."""
    return math.prod(int(extent) for extent in ty.shape) * np.dtype(str(ty.dtype)).itemsize


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
