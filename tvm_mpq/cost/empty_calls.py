"""What timing a kernel call costs, measured on kernels that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax, te

from tvm_mpq.runtime.tracer import Tracer
from tvm_mpq.transform.pipeline import build_passes

_COUNTS = (2, 8)
_CALLS = 32
_RUNS = 30


def empty_call_seconds(target: Mapping[str, Any]) -> Callable[[int], float]:
    """What the tracer says of a kernel that does nothing, as a function of its number of arguments.

    Each argument becomes an object for the instrument: a line through two numbers of arguments. ``target`` is the TVM
    target's fields. The kernels are compiled here, which takes a tenth of a second.
    """
    low, high = (_empty_call(target, count) for count in _COUNTS)
    slope = (high - low) / (_COUNTS[1] - _COUNTS[0])
    return lambda arguments: max(0.0, low + slope * (arguments - _COUNTS[0]))


def _empty_call(target: Mapping[str, Any], arguments: int) -> float:
    places = [te.placeholder((1,), "float32", f"x{index}") for index in range(arguments - 1)]
    kernel = te.create_prim_func([*places, te.compute((1,), lambda _: places[0][0] + 1.0, "out")])
    builder = relax.BlockBuilder()
    ty = relax.TensorType((1,), "float32")
    x = relax.Var("x", ty)
    with builder.function("main", [x]):
        empty = builder.add_func(kernel.with_attr("global_symbol", "empty"), "empty")
        with builder.dataflow():
            value: relax.Expr = x
            for _ in range(_CALLS):
                value = builder.emit(relax.call_tir(empty, [value] + [x] * (arguments - 2), ty))
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    built = relax.build(build_passes()(builder.get()), tvm.target.Target(dict(target)), relax_pipeline=None)
    tracer = Tracer(1, relax.VirtualMachine(built, tvm.cpu()), lambda given: list(given.values()))
    return float(np.median(tracer.trace({"x": np.zeros(1, np.float32)}, _RUNS).seconds))
