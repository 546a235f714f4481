"""ScheduleKernels: give every TIR kernel its schedule."""

from __future__ import annotations

import tvm
from tvm import IRModule
from tvm.tirx import PrimFunc

from tvm_mpq.kernels.cuda.schedule_threads import schedule_threads
from tvm_mpq.kernels.emitting import PROGRAM
from tvm_mpq.kernels.schedule_default import schedule_default
from tvm_mpq.kernels.spec import ATTRIBUTE, KernelSpec, TileLookup, default_tiles
from tvm_mpq.transform import attributes as attr


@tvm.transform.module_pass(opt_level=0, name="ScheduleKernels")
class ScheduleKernels:
    """Rewrite each PrimFunc's loops; what it computes stays the same.

    A kernel marked with a spec gets its family's template with the tile that ``tiles`` knows or else the default tile,
    and is marked with which of the two (``mpq.tile``); a written-out program gets nothing, every other kernel the
    default schedule, on a ``gpu`` that of threads.
    """

    def __init__(self, tiles: TileLookup = default_tiles, gpu: bool = False) -> None:
        self.tiles = tiles
        self.schedule = schedule_threads if gpu else schedule_default

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass."""
        result = mod.clone()
        for variable, function in mod.functions_items():
            if not isinstance(function, PrimFunc):
                continue
            if function.attrs is not None and ATTRIBUTE in function.attrs:
                text = str(function.attrs[ATTRIBUTE])
                spec = KernelSpec.from_json(text)
                tile = self.tiles(spec.key)
                source = "default" if tile is None else "tuned"
                scheduled = spec.schedule(tile).with_attr(ATTRIBUTE, text).with_attr(attr.TILE, source)
            elif function.attrs is not None and PROGRAM in function.attrs:
                scheduled = function
            else:
                scheduled = self.schedule(function)
            result.update_func(variable, scheduled.with_attr("global_symbol", variable.name_hint))
        return result
