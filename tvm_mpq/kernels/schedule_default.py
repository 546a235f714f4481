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
ROWS = "mpq.rows"
"""The extents that a kernel's rows of pixels stand for: loops over them need no divisions."""
_PARALLEL_ELEMENTS = 16384
"""Below this many loop iterations, waking the other threads costs more than it saves."""
_TASKS = 16
"""So many rows are enough to share; fewer are split along the last axis too."""
_VECTOR = 32


def schedule_default(definition: PrimFunc) -> PrimFunc:
    """Schedule ``definition``; one whose shapes are not constant, or that is one opaque block, is returned as it is."""
    sch = Schedule(IRModule({"main": definition}))
    try:
        root = sch.get_sblock("root")
    except s_tir.ScheduleError:
        return definition
    attributes = definition.attrs if definition.attrs is not None else {}
    widest = 1 if SCALAR in attributes else _VECTOR
    rows = [int(extent) for extent in attributes[ROWS]] if ROWS in attributes else []
    inline_elementwise(sch, root)
    for block in sch.get_child_blocks(root):
        _schedule_block(sch, block, widest, rows)
    return sch.mod["main"]


def inline_elementwise(sch: Schedule, root: SBlockRV) -> None:
    """Compute what is a plain function of its indices where it is read."""
    for block in sch.get_child_blocks(root):
        _inline(sch, block)


def _inline(sch: Schedule, block: SBlockRV) -> None:
    if any(is_reduction(axis) for axis in sch.get(block).iter_vars):
        return
    try:
        sch.compute_inline(block)
    except s_tir.ScheduleError:
        return  # an output, or a block that is not a plain function of its indices


def is_reduction(axis: IterVar) -> bool:
    """Whether results are sums, or the like, along ``axis``."""
    return axis.iter_type == IterVar.CommReduce


def _extent(sch: Schedule, loop: LoopRV) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None


def _schedule_block(sch: Schedule, block: SBlockRV, widest: int, rows: list[int]) -> None:
    loops = sch.get_loops(block)
    axes = sch.get(block).iter_vars
    if not loops or len(loops) != len(axes) or any(_extent(sch, loop) is None for loop in loops):
        return
    spatial = [loop for loop, axis in zip(loops, axes, strict=True) if not is_reduction(axis)]
    reduction = [loop for loop, axis in zip(loops, axes, strict=True) if is_reduction(axis)]
    if not spatial:
        return
    extents = [_extent(sch, loop) or 1 for loop in loops]
    total = 1
    for extent in extents:
        total *= extent
    sch.reorder(*spatial, *reduction)
    if rows and len(spatial) == 2:
        spatial = [*sch.split(spatial[0], rows), spatial[1]]
    last = _extent(sch, spatial[-1]) or 1
    if last < 4 and len(spatial) > 1:
        # Too short to fill a vector: vectorize the axis before it, and go through the short one outside.
        *front, long, short = spatial
        sch.reorder(*front, short, long)
        spatial = [*front, short, long]
        last = _extent(sch, long) or 1
    width = _width(last, widest)
    outer, lane = sch.split(spatial[-1], [None, width])
    if reduction:
        sch.reorder(outer, *reduction, lane)
    front = [*spatial[:-1], outer]
    shared, tasks = 0, 1
    while shared < len(front) and tasks < _TASKS:
        tasks *= _extent(sch, front[shared]) or 1
        shared += 1
    parallel = sch.fuse(*front[:shared])
    if total >= _PARALLEL_ELEMENTS:
        sch.parallel(parallel)
    if width > 1:
        sch.vectorize(lane)
    if reduction:
        sch.decompose_reduction(block, reduction[0])


def _width(extent: int, widest: int) -> int:
    """The widest divisor of ``extent``, of those that fill 8 lanes if there is one."""
    divisors = [w for w in range(1, widest + 1) if extent % w == 0]
    return max(divisors, key=lambda w: (w % 8 == 0, w), default=1)
