"""Operators that only move elements, whatever they are called: which element of the input each one of the output is.

TVM's importer makes opaque kernels of some ONNX operators (Pad, Tile, Slice backwards) and computes the indices of
others (Gather) as it goes. Each of them is told by what it does to the numbers 1, 2, 3, …:
none needs a rule of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvm_mpq.sensitivity.evaluation import compiled
from tvm_mpq.transform.operator_body import shape_of

_MOVING = frozenset(
    f"relax.{name}"
    for name in (
        "call_tir", "strided_slice", "dynamic_strided_slice", "flip", "tile", "repeat", "nn.pad", "nn.pixel_shuffle",
        "gather_elements", "gather_nd", "take",
    )
)  # fmt: skip
"""Calls that make it worth while to look."""
_LARGEST = 2**23
"""Beyond this, float32 could not tell two elements apart."""


@dataclass(frozen=True)
class Selection:
    """``result.flat[i] = concat(x.flat, fill)[indices[i]]``, in ``shape``."""

    indices: npt.NDArray[np.int32]
    fill: npt.NDArray[np.float32]
    shape: tuple[int, ...]

    def emit(self, builder: relax.BlockBuilder, x: relax.Var) -> relax.Var:
        """The result for ``x``, in operators that have gradients."""
        flat = builder.emit(relax.op.reshape(x, (int(np.prod(shape_of(x))),)))
        if len(self.fill):
            flat = builder.emit(relax.op.concat([flat, relax.const(self.fill)], 0))
        taken = builder.emit(relax.op.take(flat, relax.const(self.indices), 0, "clip"))
        return builder.emit(relax.op.reshape(taken, self.shape))


def selection(function: relax.Function, module: tvm.IRModule) -> Selection | None:
    """What ``function`` of one float tensor selects from it; None where it takes others or does anything else.

    ``module`` holds the TIR functions that it calls.
    """
    names = {
        getattr(binding.value.op, "name", "")
        for block in function.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call)
    }
    if not names & _MOVING or len(function.params) != 1 or str(function.params[0].ty.dtype) != "float32":
        return None
    shape = shape_of(function.params[0])
    size = int(np.prod(shape))
    if not 0 < size <= _LARGEST:
        return None
    run = compiled(function, module)
    numbers = np.arange(1, size + 1, dtype=np.float32).reshape(shape)
    once, twice, never = (run(numbers * factor) for factor in (1.0, 2.0, 0.0))
    return _read(once.reshape(-1), twice.reshape(-1), never.reshape(-1), size, once.shape)


def _read(
    once: npt.NDArray[Any],
    twice: npt.NDArray[Any],
    never: npt.NDArray[Any],
    size: int,
    shape: tuple[int, ...],
) -> Selection | None:
    constant = (once == never) & (twice == never)
    moved = (twice == 2.0 * once) & (never == 0.0) & (once >= 1) & (once <= size) & (once == np.rint(once))
    if not (constant | moved).all():
        return None
    fill, places = np.unique(never[constant].astype(np.float32), return_inverse=True)
    indices = np.empty(len(once), np.int32)
    indices[~constant] = once[~constant].astype(np.int64) - 1
    indices[constant] = size + places
    return Selection(indices, fill, shape)
