"""ScheduleKernels: give every TIR kernel its schedule."""

from __future__ import annotations

import tvm
from tvm import IRModule
from tvm.tirx import PrimFunc

from tvm_mpq.kernels.emitting import PROGRAM
from tvm_mpq.kernels.schedule_default import schedule_default
from tvm_mpq.kernels.spec import ATTRIBUTE, KernelSpec


@tvm.transform.module_pass(opt_level=0, name="ScheduleKernels")
class ScheduleKernels:
    """Rewrite each PrimFunc's loops; what it computes stays the same.

    A kernel marked with a spec gets its family's template, a written-out program nothing, every other one the default
    schedule.
    """

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass."""
        result = mod.clone()
        for variable, function in mod.functions_items():
            if not isinstance(function, PrimFunc):
                continue
            if function.attrs is not None and ATTRIBUTE in function.attrs:
                text = str(function.attrs[ATTRIBUTE])
                scheduled = KernelSpec.from_json(text).schedule().with_attr(ATTRIBUTE, text)
            elif function.attrs is not None and PROGRAM in function.attrs:
                scheduled = function
            else:
                scheduled = schedule_default(function)
            result.update_func(variable, scheduled.with_attr("global_symbol", variable.name_hint))
        return result
