"""Definitions of what CPUs have as programs with vectors; on a GPU the schedule of threads serves them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.elementwise import Shape, bounded
from tvm_mpq.kernels.requantize import requantize


def concat(shapes: Sequence[Shape], axis: int, dtype: str, rescaled: Sequence[bool]) -> PrimFunc:
    """Join tensors along ``axis``: parameters and results of :func:`tvm_mpq.kernels.joining.concat`."""
    rows = math.prod(shapes[0][:axis])
    parts = [math.prod(shape[axis:]) for shape in shapes]
    inputs = [te.placeholder((rows, part), dtype, f"x{place}") for place, part in enumerate(parts)]
    multipliers = te.placeholder((len(parts),), "float32", "multipliers")
    zeros = te.placeholder((len(parts) + 1,), "int32", "zeros")

    def value(place: int, row: Expr, at: Expr) -> Expr:
        code = inputs[place][row, at]
        if not rescaled[place]:
            return code
        grid = bounded(multipliers[place]), zeros[len(parts)]
        return requantize(code.astype("int32") - zeros[place], *grid)

    def element(row: Expr, e: Expr) -> Expr:
        start = sum(parts[:-1])
        chosen = value(len(parts) - 1, row, e - start)
        for place in range(len(parts) - 2, -1, -1):
            end, start = start, start - parts[place]
            chosen = te.if_then_else(e < end, value(place, row, e - start), chosen)
        return chosen

    out = te.compute((rows, sum(parts)), element, "out")
    grids = [multipliers, zeros] if any(rescaled) else []
    return te.create_prim_func([*inputs, *grids, out])
