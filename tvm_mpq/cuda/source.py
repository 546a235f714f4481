"""The CUDA source of a network's kernels, and how each is launched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import tvm
import tvm_ffi
from tvm import IRModule, relax, tirx
from tvm.runtime import Executable

from tvm_mpq.kernels.cuda.spelling import register
from tvm_mpq.target import Target

_CODEGEN = "target.build.cuda"
# TVM would reuse shared memory for another element type and then refuse the pointers of matrix loads to it.
BUILD_CONFIG = {"tirx.disable_storage_rewrite": True}


Extents: TypeAlias = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class CudaKernel:
    """One kernel: its name in the source, blocks and threads along x, y, z, and its parameters.

    An extent is None where it depends on a shape that is known only at run time. ``parameters`` are dtypes in the order
    of the source, those of pointers with a star.
    """

    name: str
    grid: Extents
    block: Extents
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class CudaCode:
    """The CUDA source of all kernels of a module, and how each is launched, by name."""

    source: str
    kernels: tuple[CudaKernel, ...]


def executable(planned: IRModule, tvm_target: Mapping[str, Any]) -> Executable:
    """Build a planned module (``build_passes``) for a TVM target's fields.

    The library inside holds CUDA source where NVIDIA's runtime is not loaded.
    """
    register()
    with tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        return relax.build(planned, tvm.target.Target(dict(tvm_target)), relax_pipeline=None)


def cuda_code(planned: IRModule, target: Target) -> CudaCode:
    """What is generated for the GPU of ``target`` from a planned module."""
    with _watched() as modules:
        built = executable(planned, target.tvm_dict())
    devices = [device for host in built.mod.imports for device in host.imports if device.kind == "cuda"]
    source = "\n".join(device.inspect_source("cuda") for device in devices)
    kernels = [_kernel(name.name_hint, f) for mod in modules for name, f in mod.functions_items()]
    return CudaCode(source, tuple(sorted(kernels, key=lambda kernel: kernel.name)))


@contextmanager
def _watched() -> Iterator[list[IRModule]]:
    """The modules that TVM's code generator is given meanwhile."""
    original = tvm.get_global_func(_CODEGEN)
    modules: list[IRModule] = []

    def generate(mod: IRModule, target: tvm.target.Target) -> object:
        modules.append(mod)
        return original(mod, target)

    tvm_ffi.register_global_func(_CODEGEN, generate, override=True)
    try:
        yield modules
    finally:
        tvm_ffi.register_global_func(_CODEGEN, original, override=True)


def _kernel(name: str, function: tirx.PrimFunc) -> CudaKernel:
    extents: dict[str, int | None] = {}

    def visit(attribute: tirx.AttrStmt) -> None:
        if attribute.attr_key == "thread_extent":
            extents[str(attribute.node.thread_tag)] = getattr(attribute.value, "value", None)

    tvm_ffi.structural_walk(function.body, (tirx.AttrStmt, visit))
    return CudaKernel(
        name,
        _along_axes(extents, "blockIdx"),
        _along_axes(extents, "threadIdx"),
        tuple(map(_parameter, function.params)),
    )


def _along_axes(extents: Mapping[str, int | None], kind: str) -> Extents:
    x, y, z = (extents.get(f"{kind}.{axis}", 1) for axis in "xyz")
    return x, y, z


def _parameter(variable: tirx.Var) -> str:
    kind = getattr(variable.ty, "element_type", None)
    return str(variable.ty) if kind is None else f"{kind}*"
