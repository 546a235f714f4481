"""Where the elements of a convolution's patches lie: row m and place k of the matrix that the input is unfolded to."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import Expr

from tvm_mpq.kernels.convolution import ConvolutionShape


@dataclass(frozen=True)
class Place:
    """An element of x [pixels, channels], and the conditions under which it is inside of it."""

    pixel: Expr
    channel: Expr
    conditions: tuple[Expr, ...]


def vector_of(shape: ConvolutionShape, most: int) -> int:
    """How many consecutive places of the reduction, up to ``most``, are always neighbours in memory."""
    per_group = shape.in_channels // shape.groups
    return max(v for v in (1, 2, 4, 8, 16) if v <= most and per_group % v == 0)


def place(shape: ConvolutionShape, length: int, group: Expr, m: Expr, k: Expr, beyond: int = 0) -> Place:
    """Of row ``m`` and place ``k + beyond`` of the reduction, ``length`` long with kernel rows padded, in ``group``.

    Both places are of one kernel row, so that ``beyond`` stays out of divisions and addresses visibly aligned.

    Where the reduction is padded the weights are zero, and any element will do: those inside the conditions are read.
    """
    per_group = shape.in_channels // shape.groups
    run = length // shape.kernel[0]
    conditions = [m < shape.rows]
    first = group * per_group if shape.groups > 1 else tirx.const(0, "int32")
    if shape.is_plain_matrix():
        k = k + beyond
        if length != per_group:
            conditions.append(k < per_group)
        return Place(m, k, tuple(conditions))
    r, within = (k // run, k % run) if shape.kernel[0] > 1 else (tirx.const(0, "int32"), k)
    within = within + beyond
    s, c = within // per_group, within % per_group
    top, left = shape.padding[:2]
    oh, ow = shape.out_height, shape.out_width
    h = m // ow % oh * shape.stride[0] + r * shape.dilation[0] - top
    w = m % ow * shape.stride[1] + s * shape.dilation[1] - left
    columns = -(-run // per_group)
    reach_h = (oh - 1) * shape.stride[0] + (shape.kernel[0] - 1) * shape.dilation[0] - top
    reach_w = (ow - 1) * shape.stride[1] + (columns - 1) * shape.dilation[1] - left
    if top:
        conditions.append(h >= 0)
    if reach_h >= shape.height:
        conditions.append(h < shape.height)
    if left:
        conditions.append(w >= 0)
    if reach_w >= shape.width:
        conditions.append(w < shape.width)
    n = m // (oh * ow)
    return Place((n * shape.height + h) * shape.width + w, first + c, tuple(conditions))
