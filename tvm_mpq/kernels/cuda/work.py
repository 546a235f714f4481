"""What a kernel on a GPU multiplies, padding included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_mpq.kernels.convolution import packed_weight_shape
from tvm_mpq.kernels.cuda.dot_depthwise import TAPS
from tvm_mpq.kernels.cuda.int4_product import padded
from tvm_mpq.kernels.cuda.kernel import cuda_tile, cuda_unit

if TYPE_CHECKING:
    from tvm_mpq.kernels.spec import KernelSpec


def cuda_work(spec: KernelSpec) -> tuple[str, float]:
    """The step of ``spec``'s kernel, and how many multiply-accumulates of it a call does, those of padding included."""
    shape, unit = spec.shape, cuda_unit(spec)
    if spec.family == "depthwise":
        taps = -(-shape.kernel[1] // TAPS) * TAPS / shape.kernel[1]
        if unit == "dp4a":
            return "dp4a", shape.macs * taps
        return "imad" if spec.in_dtype == "uint8" else "ffma", float(shape.macs)
    tile, row = cuda_tile(spec), spec.row
    blocks, steps = packed_weight_shape(shape, row)[1:3]
    if row.family == "imma4":
        steps = 2 * padded(steps)  # a product of each half of an activation
    rows = -(-shape.rows // tile.rows) * tile.rows
    wide = tile.columns // row.lanes
    columns = -(-blocks // wide) * wide * row.lanes
    step = {"tensor core": row.name, "dp4a": "dp4a", "plain": "ffma"}[unit]
    return step, float(rows * columns * steps * row.group * shape.groups)
