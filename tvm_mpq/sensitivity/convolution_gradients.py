"""The gradient of a convolution by its input as a convolution that the project's kernels run.

TVM's own rule makes a transposed convolution (without dilation in its output padding, so wrong with it) and always the
weights' gradient too. With constant weights W [O, I/G, R, S] the input's gradient is the adjoint g of the output with
stride − 1 zeros between its rows and columns, convolved at stride 1 with W turned by 180° and its channels exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.relax import op
from tvm.relax.op import _op_gradient
from tvm.relax.op.grad import no_grad

from tvm_mpq.transform.operator_body import shape_of


def convolution_gradient(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """The rule for ``nn.conv2d``; TVM's own where the weights are no constant."""
    x, weight = call.args
    attributes = call.attrs
    if not isinstance(weight, GenericConst) or attributes.data_layout != "NCHW":
        return list(_op_gradient.conv2d_grad(result, call, adjoint, builder))
    groups = int(attributes.groups)
    turned = turn_weights(weight.value.numpy(), groups)
    stride, dilation = _pair(attributes.strides), _pair(attributes.dilation)
    padding = [int(value) for value in attributes.padding]
    kernel = turned.shape[2:]
    _, _, *in_size = shape_of(x)
    _, _, *out_size = shape_of(result)
    before, after = [], []
    for axis in range(2):
        reach = dilation[axis] * (kernel[axis] - 1)
        before.append(reach - padding[axis])
        length = (out_size[axis] - 1) * stride[axis] + 1
        after.append(in_size[axis] - length - before[axis] + reach)
    if kernel == (1, 1) and not any(padding):
        # Multiplying first and spreading after saves stride² products.
        value = _convolve(builder, adjoint, turned, [0, 0, 0, 0], (1, 1), groups)
        return [_resized(builder, _spread(builder, value, stride), *in_size), no_grad(weight)]
    value = _spread(builder, adjoint, stride)
    # The last row and column were spread too: that many zeros less to pad with.
    after = [pad - step + 1 for pad, step in zip(after, stride, strict=True)]
    if min(before + after) < 0:
        # More padding than the kernel reaches: outermost results come from padding alone.
        value = _cropped(builder, value, before, after)
    pads = [max(0, pad) for pad in (before[0], before[1], after[0], after[1])]
    return [_convolve(builder, value, turned, pads, dilation, groups), no_grad(weight)]


def transposed_gradient(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """The rule for ``nn.conv2d_transpose`` with constant weights: the convolution that it is the adjoint of."""
    _, weight = call.args
    attributes = call.attrs
    if not isinstance(weight, GenericConst) or attributes.data_layout != "NCHW":
        raise NotImplementedError("the gradient of a transposed convolution needs constant weights")
    gradient = op.nn.conv2d(
        adjoint,
        weight,
        strides=list(attributes.strides),
        padding=list(attributes.padding),
        dilation=list(attributes.dilation),
        groups=int(attributes.groups),
    )
    return [gradient, no_grad(weight)]


def turn_weights(weight: npt.NDArray[np.float32], groups: int) -> npt.NDArray[np.float32]:
    """[O, I/G, R, S] → [I, O/G, R, S]: turned by 180°, input and output channels of each group exchanged."""
    out_channels, per_group, rows, columns = weight.shape
    grouped = weight.reshape(groups, out_channels // groups, per_group, rows, columns)
    turned = grouped.transpose(0, 2, 1, 3, 4)[..., ::-1, ::-1]
    return np.ascontiguousarray(turned.reshape(groups * per_group, out_channels // groups, rows, columns))


def _convolve(
    builder: relax.BlockBuilder,
    value: relax.Expr,
    weight: npt.NDArray[np.float32],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> relax.Var:
    call = op.nn.conv2d(
        value, relax.const(weight), padding=list(padding), dilation=list(dilation), groups=groups
    )
    return builder.emit(call)


def _spread(builder: relax.BlockBuilder, value: relax.Expr, stride: Sequence[int]) -> relax.Expr:
    """stride − 1 zeros behind each row and column: [N, C, H, W] → [N, C, H·stride, W·stride]."""
    if tuple(stride) == (1, 1):
        return value
    n, c, h, w = shape_of(value)
    wide = builder.emit(op.reshape(value, (n, c, h, 1, w, 1)))
    zeros = [0, 0, 0, 0, 0, 0, 0, stride[0] - 1, 0, 0, 0, stride[1] - 1]
    wide = builder.emit(op.nn.pad(wide, zeros))
    return builder.emit(op.reshape(wide, (n, c, h * stride[0], w * stride[1])))


def _resized(builder: relax.BlockBuilder, value: relax.Expr, height: int, width: int) -> relax.Var:
    """Cut or filled with zeros behind, to ``height`` × ``width``."""
    n, c, h, w = shape_of(value)
    if (h, w) != (min(h, height), min(w, width)):
        end = [n, c, min(h, height), min(w, width)]
        value = builder.emit(op.strided_slice(value, [0, 1, 2, 3], [0, 0, 0, 0], end))
    if h < height or w < width:
        value = builder.emit(op.nn.pad(value, [0, 0, 0, 0, 0, max(0, height - h), 0, max(0, width - w)]))
    return value


def _cropped(
    builder: relax.BlockBuilder, value: relax.Expr, before: Sequence[int], after: Sequence[int]
) -> relax.Var:
    _, _, h, w = shape_of(value)
    begin = [max(0, -pad) for pad in before]
    end = [extent - max(0, -pad) for extent, pad in zip((h, w), after, strict=True)]
    return builder.emit(op.strided_slice(value, [2, 3], begin, end))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
