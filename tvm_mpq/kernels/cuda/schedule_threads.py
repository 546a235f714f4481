"""The schedule of kernels without a template on a GPU: a thread makes one result, reductions and all.

Elementwise producers are inlined, and a reduction that only a later step reads is made by the thread that reads it.
Consecutive threads make consecutive results, so that what they read and write together is in few lines of memory.
"""

from __future__ import annotations

from tvm import IRModule, s_tir
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IterVar, PrimFunc

from tvm_mpq.kernels.schedule_default import inline_elementwise, is_reduction

THREADS = 128
_UNROLLED = 64
"""Reductions of at most so many steps are unrolled."""


def schedule_threads(definition: PrimFunc) -> PrimFunc:
    """Schedule ``definition`` for thread blocks of :data:`THREADS`; its extents may be variables."""
    sch = Schedule(IRModule({"main": definition}))
    root = sch.get_sblock("root")
    inline_elementwise(sch, root)
    blocks = sch.get_child_blocks(root)
    done: set[str] = set()
    for block in reversed(blocks):
        name = sch.get(block).name_hint
        if name in done:
            continue
        thread = _bind(sch, block)
        for producer in sch.get_producers(block):
            if _has_reduction(sch, producer) and len(sch.get_consumers(producer)) == 1 and thread is not None:
                sch.compute_at(producer, thread, preserve_unit_loops=True)
                sch.set_scope(producer, 0, "local")
                _reduce(sch, producer)
                done.add(sch.get(producer).name_hint)
        if _has_reduction(sch, block):
            _reduce(sch, block)
    return sch.mod["main"]


def _bind(sch: Schedule, block: SBlockRV) -> LoopRV | None:
    """Bind the block's results to threads; gives the loop of a thread."""
    loops = sch.get_loops(block)
    axes = sch.get(block).iter_vars
    spatial = [loop for loop, axis in zip(loops, axes, strict=True) if not is_reduction(axis)]
    reduction = [loop for loop, axis in zip(loops, axes, strict=True) if is_reduction(axis)]
    if not spatial:
        spatial = [sch.add_unit_loop(block)]
    sch.reorder(*spatial, *reduction)
    outer, thread = sch.split(sch.fuse(*spatial), [None, THREADS])
    sch.bind(outer, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return thread


def _has_reduction(sch: Schedule, block: SBlockRV) -> bool:
    return any(is_reduction(axis) for axis in sch.get(block).iter_vars)


def _reduce(sch: Schedule, block: SBlockRV) -> None:
    """Start from zero before the reduction's loops, and unroll short ones."""
    count = sum(axis.iter_type == IterVar.CommReduce for axis in sch.get(block).iter_vars)
    loops = sch.get_loops(block)[-count:]
    steps = 1
    for loop in loops:
        steps *= int(sch.get(loop).extent)
    try:
        sch.decompose_reduction(block, loops[0])
    except s_tir.ScheduleError:
        return  # its start is not apart from its steps
    if steps <= _UNROLLED:
        for loop in loops:
            sch.unroll(loop)
