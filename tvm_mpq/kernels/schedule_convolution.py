"""The schedule template of convolutions and matrix multiplications, for every instruction of the table.

for task in parallel(row tasks × column tasks):
    stage the task's patches in the cache
    for column tile:  for row tile:
        for k (unrolled):  acc[rows, blocks, lanes] += …   (registers)
        finish and store the tile
"""

from __future__ import annotations

import math

from tvm import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.tirx import PrimFunc

from tvm_mpq.kernels import neon_matrix
from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.tiles import ConvolutionTile

_VECTOR_BYTES = 64


def schedule_convolution(
    definition: PrimFunc, shape: ConvolutionShape, intrinsic: Intrinsic, tile: ConvolutionTile
) -> PrimFunc:
    """Apply the template to ``convolution(...)``, which must have been made with ``row_tile=tile.rows`` and
    ``by_kernel_row=not tile.staged``.
    """
    sch = Schedule(IRModule({"main": definition}))
    out, finished, acc, stage = (sch.get_sblock(name) for name in ("out", "finished", "acc", "stage"))
    # Rows of the last tile that lie outside the tensor become a condition on the store. A condition on channels would
    # keep the store from being vectorized: there the finished tile is copied out by a loop of its own.
    ragged = shape.out_channels // shape.groups % intrinsic.lanes != 0
    if not ragged:
        sch.reverse_compute_inline(out)

    g, m, n, lane = sch.get_loops(finished)
    task, row, mi = sch.split(m, [None, tile.row_tiles, tile.rows])
    column_task, column, ni = sch.split(n, [None, tile.column_tiles, tile.blocks])
    sch.reorder(g, task, column_task, column, row, mi, ni, lane)
    tasks = sch.fuse(g, task, column_task)
    sch.parallel(tasks)
    if intrinsic.imported is not None:
        sch.annotate(tasks, "pragma_import_llvm", intrinsic.imported)
    if ragged and shape.groups == 1:
        sch.reverse_compute_at(out, row, preserve_unit_loops=True)
    elif ragged:
        sch.parallel(sch.get_loops(out)[0])  # TVM cannot place a copy whose channels wrap at each group
    # Only whole powers of two: LLVM keeps a tile in registers when it reads it in vectors that fill them.
    width = intrinsic.lanes * max(d for d in (1, 2, 4) if tile.blocks % d == 0)
    _vectorize(sch, sch.fuse(ni, lane), min(width, 32))
    sch.unroll(mi)

    sch.compute_at(acc, row, preserve_unit_loops=True)
    if intrinsic.rows > 1:
        sch.transform_layout(acc, ("write", 0), neon_matrix.accumulator_layout)
        sch.transform_layout(stage, ("write", 0), neon_matrix.stage_layout)
    _place_stage(sch, stage, tasks, shape, intrinsic, tile)
    _schedule_accumulation(sch, acc, intrinsic, tile)
    return sch.mod["main"]


def _schedule_accumulation(sch: Schedule, acc: SBlockRV, intrinsic: Intrinsic, tile: ConvolutionTile) -> None:
    loops = sch.get_loops(acc)[-5 if tile.staged else -6 :]
    (mi, ni, lane), reduction, (k, inner) = loops[:3], loops[3:-2], loops[-2:]
    k, step = sch.split(k, [None, tile.unroll])
    reduction.append(k)
    name = intrinsic.tensor_intrinsic()
    if name is None:
        sch.reorder(*reduction, step, mi, ni, inner, lane)
        sch.unroll(inner)
        sch.vectorize(lane)
    else:
        one = [lane, inner]
        if intrinsic.rows > 1:
            mi, row = sch.split(mi, [None, intrinsic.rows])
            one.insert(0, row)
        sch.reorder(*reduction, step, mi, ni, *one)
    for loop in (step, mi, ni):
        sch.unroll(loop)
    init = sch.decompose_reduction(acc, reduction[0])
    if name is not None:
        sch.tensorize(one[0], name)
        row, lane = sch.get_loops(init)[-2:]
        if intrinsic.rows > 1:
            # As the blocks of results lie: LLVM then repeats pairs of biases in registers.
            block, column = sch.split(lane, [None, 2])
            sch.reorder(block, row, column)
            lane = sch.fuse(row, column)
        sch.vectorize(lane)


def _place_stage(
    sch: Schedule,
    stage: SBlockRV,
    tasks: object,
    shape: ConvolutionShape,
    intrinsic: Intrinsic,
    tile: ConvolutionTile,
) -> None:
    if not shape.is_pointwise():
        n, h, line = sch.get_loops("padded")
        sch.parallel(sch.fuse(n, h))
        per_pixel = shape.in_channels
        if per_pixel % 4 == 0:
            places, channels = sch.split(line, [None, per_pixel])
            _vectorize(sch, channels, 32)
        else:  # vectors cross pixels
            places, lane = sch.split(line, [None, 32])
            sch.vectorize(lane)
        # The border's condition is taken out of the loop over the others: in a vector it is asked for each element.
        sch.annotate(places, "pragma_loop_partition_hint", 1)
    if not tile.staged:
        sch.compute_inline(stage)
        return
    if tile.stage_whole:
        g, m, k = sch.get_loops(stage)
        sch.parallel(sch.fuse(g, m))
    else:
        sch.compute_at(stage, tasks, preserve_unit_loops=True)
        k = sch.get_loops(stage)[-1]
    # Runs that are contiguous in the padded input: whole kernel rows, or the channels of one pixel.
    length = shape.reduction(intrinsic.group)
    per_group = shape.in_channels // shape.groups
    whole_rows = shape.groups == 1 and shape.dilation[1] == 1
    run = length // shape.kernel[0] if whole_rows else per_group
    if length % run == 0 and (whole_rows or length == shape.kernel[0] * shape.kernel[1] * per_group):
        width = 32 if intrinsic.rows == 1 else math.gcd(run, intrinsic.per_word)
        _vectorize(sch, sch.split(k, [length // run, run])[1], width)


def _vectorize(sch: Schedule, loop: object, width: int) -> None:
    """Vectorize ``loop`` by its largest divisor up to ``width``; LLVM splits odd vectors into registers."""
    extent = int(sch.get(loop).extent)
    width = max(w for w in range(1, width + 1) if extent % w == 0)
    outer, inner = sch.split(loop, [None, width])
    sch.unroll(outer)
    sch.vectorize(inner)
