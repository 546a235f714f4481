"""A schedule for every kernel without a template: no operator runs as a naive loop nest.

Elementwise producers are inlined; every remaining block is parallel over its outer axes, vectorized over its
last one, and its reduction runs outside the vector, with a row of partial results in registers.
"""

from __future__ import annotations

from tvm import IRModule, s_tir, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IterVar, PrimFunc

SCALAR = "mpq.scalar"
"""Marks a kernel that loads from computed places: a vector of such loads costs more than the scalars."""
_PARALLEL_ELEMENTS = 16384
"""Below this many loop iterations, waking the other threads costs more than it saves."""
_VECTOR = 32


def schedule_default(definition: PrimFunc) -> PrimFunc:
    """Schedule ``definition``; a function whose shapes are not constant is returned as it is."""
    sch = Schedule(IRModule({"main": definition}))
    scalar = definition.attrs is not None and SCALAR in definition.attrs
    widest = 1 if scalar else _VECTOR
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        _inline(sch, block)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        _schedule_block(sch, block, widest)
    return sch.mod["main"]


def _inline(sch: Schedule, block: SBlockRV) -> None:
    if any(_is_reduction(axis) for axis in sch.get(block).iter_vars):
        return
    try:
        sch.compute_inline(block)
    except s_tir.ScheduleError:
        return  # an output, or a block that is not a plain function of its indices


def _is_reduction(axis: IterVar) -> bool:
    return axis.iter_type == IterVar.CommReduce


def _extent(sch: Schedule, loop: LoopRV) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None


def _schedule_block(sch: Schedule, block: SBlockRV, widest: int) -> None:
    loops = sch.get_loops(block)
    axes = sch.get(block).iter_vars
    if not loops or len(loops) != len(axes) or any(_extent(sch, loop) is None for loop in loops):
        return
    spatial = [loop for loop, axis in zip(loops, axes, strict=True) if not _is_reduction(axis)]
    reduction = [loop for loop, axis in zip(loops, axes, strict=True) if _is_reduction(axis)]
    if not spatial:
        return
    total = 1
    for loop in loops:
        total *= _extent(sch, loop) or 1
    sch.reorder(*spatial, *reduction)
    last = _extent(sch, spatial[-1]) or 1
    if last < 4 and len(spatial) > 1:
        # Too short to fill a vector: vectorize the axis before it, and go through the short one outside.
        *front, long, short = spatial
        sch.reorder(*front, short, long)
        spatial = [*front, short, long]
        last = _extent(sch, long) or 1
    width = max((w for w in range(1, widest + 1) if last % w == 0), default=1)
    outer, lane = sch.split(spatial[-1], [None, width])
    if reduction:
        sch.reorder(outer, *reduction, lane)
    parallel = sch.fuse(*spatial[:-1], outer)
    if total >= _PARALLEL_ELEMENTS:
        sch.parallel(parallel)
    if width > 1:
        sch.vectorize(lane)
    if reduction:
        sch.decompose_reduction(block, reduction[0])
