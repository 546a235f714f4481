"""The value of a small Relax function on a chosen input, computed while compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

Array = npt.NDArray[Any]
_TARGET = tvm.target.Target({"kind": "llvm", "opt-level": 1})
"""It runs a few times: compiling takes longer."""


def compiled(function: relax.Function, module: tvm.IRModule) -> Callable[[Array], Array]:
    """``function`` of one float32 tensor as a function of arrays; ``module`` holds the TIR functions that it calls."""
    called = {v: f for v, f in module.functions_items() if not isinstance(f, relax.Function)}
    public = relax.Function(function.params, function.body, function.ret_ty, function.is_pure)
    whole = tvm.IRModule(called)
    whole["main"] = public.with_attr("global_symbol", "main")
    machine = relax.VirtualMachine(relax.build(whole, _TARGET), tvm.cpu())

    def run(x: Array) -> Array:
        result: Array = machine["main"](tvm.runtime.tensor(np.ascontiguousarray(x, np.float32))).numpy()
        return result

    return run
