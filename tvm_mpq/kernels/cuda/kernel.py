"""Which program or schedule makes a kernel on a GPU, and what its multiply-accumulates run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm.tirx import PrimFunc

from tvm_mpq.gpu import INT4_INSTRUCTION
from tvm_mpq.kernels.cuda.block_program import Problem
from tvm_mpq.kernels.cuda.default_tile import default_cuda_tile, default_int4_tile
from tvm_mpq.kernels.cuda.dot_depthwise import dot_depthwise, dot_depthwise_fits
from tvm_mpq.kernels.cuda.dot_rows import dot_rows, dot_rows_fits, dot_rows_tile
from tvm_mpq.kernels.cuda.int4_core import int4_core
from tvm_mpq.kernels.cuda.scalar_core import scalar_core
from tvm_mpq.kernels.cuda.schedule_threads import schedule_threads
from tvm_mpq.kernels.cuda.spelling import register
from tvm_mpq.kernels.cuda.tensor_core import tensor_core
from tvm_mpq.kernels.cuda.tile import TENSOR_CORE, CudaTile
from tvm_mpq.kernels.cuda.units import Unit
from tvm_mpq.kernels.depthwise import depthwise
from tvm_mpq.kernels.intrinsic import int4_fits

if TYPE_CHECKING:
    from tvm_mpq.kernels.spec import KernelSpec


def cuda_unit(spec: KernelSpec) -> Unit:
    """What the multiply-accumulates of ``spec``'s kernel run on."""
    if spec.family == "depthwise":
        return "dp4a" if dot_depthwise_fits(spec.shape, spec.in_dtype) else "plain"
    if dot_rows_fits(spec.shape, spec.in_dtype):
        return "dp4a"
    return "tensor core" if spec.row.family in TENSOR_CORE else "plain"


def cuda_int4(spec: KernelSpec) -> bool:
    """Whether int4 tensor cores, where there are any, can make ``spec``'s kernel of bytes."""
    able = spec.instruction == INT4_INSTRUCTION and int4_fits(spec.row)
    return able and not dot_rows_fits(spec.shape, spec.in_dtype)


def cuda_tile(spec: KernelSpec) -> CudaTile:
    """The default tile of a convolution or matrix multiplication."""
    if dot_rows_fits(spec.shape, spec.in_dtype):
        return dot_rows_tile(spec.shape)
    if spec.row.family == "imma4":
        return default_int4_tile(spec.shape, spec.row)
    return default_cuda_tile(spec.shape, spec.row)


def cuda_kernel(spec: KernelSpec, tile: CudaTile | None = None) -> PrimFunc:
    """The kernel of ``spec``, scheduled, with ``tile`` where its program has one (None: the default)."""
    register()
    if spec.family == "depthwise":
        if cuda_unit(spec) == "dp4a":
            return dot_depthwise(spec.shape, spec.out)
        return schedule_threads(depthwise(spec.shape, spec.in_dtype, spec.out, spec.float_weight))
    problem = Problem(spec.shape, spec.in_dtype, spec.out, spec.row, spec.weight_group, spec.adds)
    tile = tile or cuda_tile(spec)
    if spec.row.family == "imma4":
        return int4_core(problem, tile)
    programs = {"tensor core": tensor_core, "dp4a": dot_rows, "plain": scalar_core}
    return programs[cuda_unit(spec)](problem, tile)
