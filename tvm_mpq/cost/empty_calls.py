"""What timing a kernel call costs, measured on kernels that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax, te

from tvm_mpq.build import Built
from tvm_mpq.cost.placed import Here, Placed
from tvm_mpq.tensor_spec import TensorSpec
from tvm_mpq.transform.pipeline import build_passes

_COUNTS = (2, 8)
_CALLS = 32
_RUNS = 30


@dataclass(frozen=True)
class EmptyCalls:
    """Seconds of a call of a kernel that does nothing, by its number of arguments: a straight line, (start, slope).

    ``traced`` is what the tracer says of it; each argument becomes an object for the instrument. ``undisturbed`` is
    its share of a network without instrument, the virtual machine's work for the call included.
    """

    traced: tuple[float, float]
    undisturbed: tuple[float, float]

    def instrument(self, arguments: Sequence[int]) -> npt.NDArray[np.float64]:
        """What the instrument adds to the traced seconds of calls with so many arguments, float64 [calls]."""
        return np.maximum(_at(self.traced, arguments) - _at(self.undisturbed, arguments), 0.0)

    def net(self, traced: npt.NDArray[np.float64], arguments: Sequence[int]) -> npt.NDArray[np.float64]:
        """Traced seconds [runs, calls] less the instrument's; never less than a call that does nothing takes."""
        return np.maximum(traced - self.instrument(arguments), _at(self.undisturbed, arguments))


def _at(line: tuple[float, float], arguments: Sequence[int]) -> npt.NDArray[np.float64]:
    return line[0] + line[1] * np.asarray(arguments, np.float64)


Place = Callable[[Built, Sequence[TensorSpec]], Placed]
"""Puts a built network with such inputs where it is timed."""


def _here(built: Built, _inputs: Sequence[TensorSpec]) -> Placed:
    return Here(built, 1)


def measure_empty_calls(target: Mapping[str, Any], place: Place = _here) -> EmptyCalls:
    """Measure on this machine or where ``place`` puts it; the kernels are compiled, which takes a tenth of a second.

    ``target`` is the TVM target's fields.
    """
    points = np.array([_empty_call(target, place, count) for count in _COUNTS])
    slope = (points[1] - points[0]) / (_COUNTS[1] - _COUNTS[0])
    start = points[0] - slope * _COUNTS[0]
    return EmptyCalls((float(start[0]), float(slope[0])), (float(start[1]), float(slope[1])))


def _empty_call(target: Mapping[str, Any], place: Place, arguments: int) -> tuple[float, float]:
    """(traced, undisturbed) seconds."""
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
    built = Built(build_passes()(builder.get()), target, 0, 0)
    inputs = {"x": np.zeros(1, np.float32)}
    found = place(built, [TensorSpec("x", (1,), "float32")])
    undisturbed = found.whole(inputs, _RUNS, 3) / _CALLS
    return float(np.median(found.trace(inputs, _RUNS).seconds)), float(np.median(undisturbed))
