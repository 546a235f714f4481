"""Concatenation, written out: each input's part of a row is copied, or requantized, in whole vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.elementwise import Shape, bounded
from tvm_mpq.kernels.emitting import argument, program, store
from tvm_mpq.kernels.requantize import requantize, requantize_vector

_VECTOR = 32
_PARALLEL_ELEMENTS = 16384


def concat(shapes: Sequence[Shape], axis: int, dtype: str, rescaled: Sequence[bool]) -> PrimFunc:
    """Join tensors along ``axis``; ``rescaled``: the inputs whose grid is not the output's.

    The inputs as [rows, their part of a row], for uint8 multipliers float32[n] and zero-points int32[n + 1] (the last
    is the output's) if any is rescaled, and out [rows, row].
    """
    rows = math.prod(shapes[0][:axis])
    parts = [math.prod(shape[axis:]) for shape in shapes]
    with program() as builder:
        inputs = [argument(f"x{place}", (rows, part), dtype) for place, part in enumerate(parts)]
        if any(rescaled):
            multipliers = argument("multipliers", (len(parts),), "float32")
            zeros = argument("zeros", (len(parts) + 1,), "int32")
        out = argument("out", (rows, sum(parts)), dtype)

        def copy(place: int, row: Expr, start: int, at: Expr, width: int) -> None:
            value = inputs[place][row, _span(at, width)]
            if rescaled[place]:
                grid = bounded(multipliers[place]), zeros[len(parts)]
                if width == 1:
                    value = requantize(value.astype("int32") - zeros[place], *grid)
                else:
                    codes = T.cast(value, f"int32x{width}") - T.broadcast(zeros[place], width)
                    value = requantize_vector(codes, T.broadcast(grid[0], width), grid[1], width)
            store(out, [row, _span(start + at, width)], value)

        large = rows > 1 and rows * sum(parts) >= _PARALLEL_ELEMENTS
        with T.sblock("root"), (T.parallel if large else T.serial)(0, rows) as row:
            start = 0
            for place, part in enumerate(parts):
                width = _width(part)
                with T.serial(0, part // width) as k:
                    copy(place, row, start, k * width, width)
                if part % width:
                    with T.serial(part // width * width, part) as k:
                        copy(place, row, start, k, 1)
                start += part
    return builder.get()


def _span(start: Expr | int, width: int) -> Expr | int:
    return T.ramp(start, 1, width) if width > 1 else start


def _width(part: int) -> int:
    """The widest vector that fills ``part`` exactly, or a full one that leaves a tail."""
    fitting = max((w for w in range(8, _VECTOR + 1, 8) if part % w == 0), default=0)
    return fitting or (16 if part >= 16 else max(w for w in (1, 2, 4, 8) if w <= part))
