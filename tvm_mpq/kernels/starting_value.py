"""What a reduction starts with: TVM's tensor expressions take an initial value but make zero of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import IRModule, tirx
from tvm.s_tir import SBlock, Schedule
from tvm.tirx import Expr, PrimFunc, Var


def start_with(
    function: PrimFunc, block: str, parameter: str, indices: Callable[[Sequence[Var]], Sequence[Expr]]
) -> PrimFunc:
    """``function`` with the reduction ``block`` starting from elements of its ``parameter`` instead of zero.

    ``indices`` gives the element for the block's own variables.
    """
    (buffer,) = (each for each in function.params if each.name == parameter)
    sch = Schedule(IRModule({"main": function}))
    place = sch.get_sblock(block)
    old = sch.get(place)
    value = tirx.BufferLoad(buffer, list(indices([each.var for each in old.iter_vars])))
    new = SBlock(
        old.iter_vars,
        old.reads,
        old.writes,
        old.name_hint,
        old.body,
        tirx.BufferStore(old.init.buffer, value, old.init.indices),
        old.alloc_buffers,
        old.match_buffers,
        old.annotations,
    )
    sch.state.replace(sch.get_sref(place), new, {old: new})
    return sch.mod["main"]
