"""The gradient of max pooling.

TVM's own kernel has no dilation, is wrong where padding meets overlapping windows, and walks the elements one by one.
Here each place of the window is one view of the padded input, as large as the output: the adjoint goes to the places
that hold the maximum, in equal parts among equals (8-bit activations have many), and each view's share goes back to
where it is from. One window over everything, as global pooling has, needs no views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.relax import op

from tvm_mpq.transform.operator_body import shape_of


def max_pool_gradient(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """The rule for ``nn.max_pool2d`` in NCHW."""
    (x,) = call.args
    a = call.attrs
    if a.layout != "NCHW":
        raise NotImplementedError("the gradient of max pooling needs the layout NCHW")
    n, c, height, width = shape_of(x)
    out = shape_of(result)[2:]
    stride, dilation, kernel = _pair(a.strides), _pair(a.dilation), _pair(a.pool_size)
    if out == (1, 1) and kernel == (height, width):
        return [_share_of_all(builder, x, result, adjoint)]
    top, left, bottom, right = (int(value) for value in a.padding)
    # In ceil mode the last windows reach beyond the padding.
    sizes = [
        max(extent + before + after, (o - 1) * s + d * (k - 1) + s)
        for extent, before, after, o, s, d, k in zip(
            (height, width), (top, left), (bottom, right), out, stride, dilation, kernel, strict=True
        )
    ]
    beyond = [0, 0, 0, 0, top, sizes[0] - height - top, left, sizes[1] - width - left]
    padded = builder.emit(op.nn.pad(x, beyond, pad_value=float(np.finfo(np.float32).min)))
    places = [(r * dilation[0], s * dilation[1]) for r in range(kernel[0]) for s in range(kernel[1])]
    hits = [_hit(builder, padded, result, place, stride) for place in places]
    total = hits[0]
    for hit in hits[1:]:
        total = builder.emit(op.add(total, hit))
    share = builder.emit(op.divide(adjoint, total))
    gradient: relax.Var | None = None
    for place, hit in zip(places, hits, strict=True):
        part = _placed(builder, builder.emit(op.multiply(share, hit)), place, stride, sizes)
        gradient = part if gradient is None else builder.emit(op.add(gradient, part))
    assert gradient is not None
    begin, end = [0, 0, top, left], [n, c, top + height, left + width]
    return [op.strided_slice(gradient, [0, 1, 2, 3], begin, end)]


def _share_of_all(
    builder: relax.BlockBuilder, x: relax.Var, result: relax.Var, adjoint: relax.Var
) -> relax.Expr:
    """The gradient where one window is all of ``x`` [N, C, H, W]; ``result`` and ``adjoint`` are [N, C, 1, 1]."""
    hits = builder.emit(op.astype(builder.emit(op.equal(x, result)), "float32"))
    total = builder.emit(op.sum(hits, [2, 3], keepdims=True))
    return op.multiply(hits, builder.emit(op.divide(adjoint, total)))


def _hit(
    builder: relax.BlockBuilder,
    padded: relax.Var,
    result: relax.Var,
    place: tuple[int, int],
    stride: tuple[int, int],
) -> relax.Var:
    """1 where the element at ``place`` of the window is its maximum, else 0; the shape of the result."""
    n, c, *out = shape_of(result)
    end = [at + (o - 1) * s + 1 for at, o, s in zip(place, out, stride, strict=True)]
    view = builder.emit(op.strided_slice(padded, [0, 1, 2, 3], [0, 0, *place], [n, c, *end], [1, 1, *stride]))
    return builder.emit(op.astype(builder.emit(op.equal(view, result)), "float32"))


def _placed(
    builder: relax.BlockBuilder,
    value: relax.Var,
    place: tuple[int, int],
    stride: tuple[int, int],
    sizes: Sequence[int],
) -> relax.Var:
    """Zeros [N, C, *sizes] with ``value`` at ``place`` and every ``stride`` from there."""
    n, c, h, w = shape_of(value)
    if math.prod(stride) > 1:
        value = builder.emit(op.reshape(value, (n, c, h, 1, w, 1)))
        value = builder.emit(op.nn.pad(value, [0, 0, 0, 0, 0, 0, 0, stride[0] - 1, 0, 0, 0, stride[1] - 1]))
        value = builder.emit(op.reshape(value, (n, c, h * stride[0], w * stride[1])))
    _, _, h, w = shape_of(value)
    keep = [min(h, sizes[0] - place[0]), min(w, sizes[1] - place[1])]
    if keep != [h, w]:
        value = builder.emit(op.strided_slice(value, [0, 1, 2, 3], [0, 0, 0, 0], [n, c, *keep]))
    around = [0, 0, 0, 0, place[0], sizes[0] - place[0] - keep[0], place[1], sizes[1] - place[1] - keep[1]]
    return builder.emit(op.nn.pad(value, around))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
