"""What a module of device functions says of its kernels: launch arguments and the sizes of buffers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm_ffi
from tvm import IRModule, tirx

ALLOCATED = 2**64 - 1
"""In place of a size that is known at run time only: all that was allocated, up to 24 bytes more than the tensor."""

_TAGS = {
    "blockIdx.x": "x",
    "blockIdx.y": "y",
    "blockIdx.z": "z",
    "threadIdx.x": "X",
    "threadIdx.y": "Y",
    "threadIdx.z": "Z",
    "tirx.use_dyn_shared_memory": "s",
}


@dataclass(frozen=True)
class KernelInfo:
    """A kernel: the bytes behind each parameter (0: a number; or :data:`ALLOCATED`), and its launch arguments.

    ``tags`` has a letter for each: x, y, z of the grid, X, Y, Z of the block, s the bytes of dynamic shared memory.
    """

    name: str
    buffer_bytes: tuple[int, ...]
    tags: str


def kernel_infos(device_module: IRModule) -> list[KernelInfo]:
    """The kernels of a module as CUDA's code generator gets it.

    Raises NotImplementedError for a launch argument that is none of the above.
    """
    return [
        _info(name.name_hint, function)
        for name, function in device_module.functions_items()
        if "tirx.kernel_launch_params" in function.attrs
    ]


def _info(name: str, function: tirx.PrimFunc) -> KernelInfo:
    sizes: dict[tirx.Var, int] = dict.fromkeys(function.params, 0)

    def visit(declared: tirx.DeclBuffer) -> None:
        buffer = declared.buffer
        if declared.data not in sizes:
            return
        if not all(isinstance(extent, tirx.IntImm) for extent in buffer.shape):
            sizes[declared.data] = ALLOCATED
            return
        extents = [int(extent.value) for extent in buffer.shape]
        sizes[declared.data] = max(sizes[declared.data], math.prod(extents) * _bits(str(buffer.dtype)) // 8)

    tvm_ffi.structural_walk(function.body, (tirx.DeclBuffer, visit))
    tags = [str(tag) for tag in function.attrs["tirx.kernel_launch_params"]]
    unknown = [tag for tag in tags if tag not in _TAGS]
    if unknown:
        raise NotImplementedError(f"{name}: launch arguments {', '.join(unknown)}")
    return KernelInfo(name, tuple(sizes.values()), "".join(_TAGS[tag] for tag in tags))


def _bits(dtype: str) -> int:
    base, _, lanes = dtype.partition("x")
    known = {"int4": 4, "uint4": 4, "bool": 8, "bfloat16": 16}
    return (known[base] if base in known else 8 * np.dtype(base).itemsize) * int(lanes or 1)
