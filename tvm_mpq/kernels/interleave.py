"""Putting the phases of a transposed convolution between each other: a move of pixels."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.schedule_default import ROWS


@dataclass(frozen=True)
class Interleave:
    """[batch, height, width] pixels of ``channels`` (every phase's) → [batch, out_height, out_width] pixels.

    ``first``: the row and column of phases at which the output begins.
    """

    batch: int
    height: int
    width: int
    out_height: int
    out_width: int
    channels: int
    groups: int
    stride: tuple[int, int]
    first: tuple[int, int]


def interleave(shape: Interleave, dtype: str) -> PrimFunc:
    """[N·H·W, g·s_h·s_w·K/g] → [N·OH·OW, K]: x, out."""
    x = te.placeholder((shape.batch * shape.height * shape.width, shape.channels), dtype, "x")
    (sh, sw), (top, left) = shape.stride, shape.first
    each = shape.channels // (shape.groups * sh * sw)

    def element(m: Expr, k: Expr) -> Expr:
        n, y, z = (
            m // (shape.out_height * shape.out_width),
            m // shape.out_width % shape.out_height,
            m % shape.out_width,
        )
        row, column = y + top, z + left
        pixel = (n * shape.height + row // sh) * shape.width + column // sw
        phase = row % sh * sw + column % sw
        if shape.groups == 1:
            return x[pixel, phase * each + k]
        return x[pixel, (k // each * (sh * sw) + phase) * each + k % each]

    rows = shape.batch * shape.out_height * shape.out_width
    out = te.compute((rows, shape.channels // (sh * sw)), element, "out")
    split = [shape.batch, shape.out_height, shape.out_width]
    if left == 0 and shape.out_width % sw == 0:
        split = [*split[:2], shape.out_width // sw, sw]
    return te.create_prim_func([x, out]).with_attr(ROWS, split)
