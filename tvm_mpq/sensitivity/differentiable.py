"""An operator's body in terms that Relax can differentiate: what has a gradient stays, the rest is spelled out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.relax import op
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_mpq.sensitivity.resizing import resize_matrices
from tvm_mpq.transform.operator_body import bounds, shape_of

Decomposition = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]


@mutator
class Differentiable(PyExprMutator):  # type: ignore[misc]
    """Replaces variables by ``values`` and calls by equal ones that have gradients, emitted into ``builder``."""

    def __init__(self, builder: relax.BlockBuilder, values: dict[relax.Var, relax.Expr]) -> None:
        super().__init__()
        self.builder = builder
        self.values = values

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        """The value of ``var``, or itself."""
        return self.values.get(var, var)

    visit_dataflow_var_ = visit_var_

    def emitted(self, value: relax.Expr) -> relax.Expr:
        """The variable of ``value`` with everything replaced."""
        new = self.visit_expr(value)
        name = getattr(getattr(new, "op", None), "name", "")
        if name in _DECOMPOSITIONS:
            new = _DECOMPOSITIONS[name](self.builder, new)
        return new if isinstance(new, relax.Var) else self.builder.emit(new)


def _number(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def _clip(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    low, high = bounds(call)
    value = call.args[0]
    if not math.isinf(low):
        value = builder.emit(op.maximum(value, _number(low)))
    if not math.isinf(high):
        value = builder.emit(op.minimum(value, _number(high)))
    return value


def _normalized(builder: relax.BlockBuilder, x: relax.Expr, axes: Sequence[int], epsilon: float) -> relax.Var:
    """(x − mean) / sqrt(variance + ε) over ``axes``."""
    mean = builder.emit(op.mean(x, list(axes), keepdims=True))
    centred = builder.emit(op.subtract(x, mean))
    variance = builder.emit(op.mean(builder.emit(op.multiply(centred, centred)), list(axes), keepdims=True))
    deviation = builder.emit(op.sqrt(builder.emit(op.add(variance, _number(epsilon)))))
    return builder.emit(op.divide(centred, deviation))


def _scaled(
    builder: relax.BlockBuilder,
    value: relax.Var,
    call: relax.Call,
    shape: Sequence[int],
    first: int = 1,
) -> relax.Expr:
    """gamma · value + beta with gamma and beta, arguments ``first`` and the next, in ``shape``."""
    attributes = call.attrs
    gamma, beta = call.args[first], call.args[first + 1]
    if bool(attributes.scale):
        value = builder.emit(op.multiply(value, builder.emit(op.reshape(gamma, shape))))
    if bool(attributes.center):
        value = builder.emit(op.add(value, builder.emit(op.reshape(beta, shape))))
    return value


def _layer_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    shape = shape_of(call.args[0])
    axes = [int(axis) % len(shape) for axis in call.attrs.axes]
    value = _normalized(builder, call.args[0], axes, float(call.attrs.epsilon))
    broad = [extent if axis in axes else 1 for axis, extent in enumerate(shape)]
    return _scaled(builder, value, call, broad)


def _instance_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    shape = shape_of(call.args[0])
    axes = [int(axis) % len(shape) for axis in call.attrs.axes]
    value = _normalized(builder, call.args[0], axes, float(call.attrs.epsilon))
    channel = int(call.attrs.channel_axis) % len(shape)
    return _scaled(builder, value, call, [e if a == channel else 1 for a, e in enumerate(shape)])


def _group_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    shape = shape_of(call.args[0])
    groups = int(call.attrs.num_groups)
    channel = int(call.attrs.channel_axis) % len(shape)
    split = [*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :]]
    axes = [channel + 1, *(int(axis) % len(shape) + 1 for axis in call.attrs.axes)]
    grouped = builder.emit(op.reshape(call.args[0], split))
    value = _normalized(builder, grouped, sorted(set(axes)), float(call.attrs.epsilon))
    value = builder.emit(op.reshape(value, shape))
    return _scaled(builder, value, call, [e if a == channel else 1 for a, e in enumerate(shape)])


def _rms_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, weight = call.args[:2]
    axes = [int(axis) for axis in call.attrs.axes]
    square = builder.emit(op.mean(builder.emit(op.multiply(x, x)), axes, keepdims=True))
    root = builder.emit(op.sqrt(builder.emit(op.add(square, _number(float(call.attrs.epsilon))))))
    return op.multiply(builder.emit(op.divide(x, root)), weight)


def _prelu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, slope = call.args
    shape = shape_of(x)
    axis = int(call.attrs.axis) % len(shape)
    broad = [extent if a == axis else 1 for a, extent in enumerate(shape)]
    if int(np.prod(shape_of(slope))) == 1:
        broad = [1] * len(shape)
    scaled = builder.emit(op.multiply(x, builder.emit(op.reshape(slope, broad))))
    return op.where(builder.emit(op.greater(x, _number(0.0))), x, scaled)


def _std(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    axes = None if call.attrs.axis is None else [int(axis) for axis in call.attrs.axis]
    return op.sqrt(builder.emit(op.variance(call.args[0], axes, keepdims=bool(call.attrs.keepdims))))


def _softplus(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """max(x, 0) + log(1 + exp(−|x|)): no exponential that can overflow."""
    x = call.args[0]
    small = builder.emit(op.exp(builder.emit(op.negative(builder.emit(op.abs(x))))))
    tail = builder.emit(op.log(builder.emit(op.add(small, _number(1.0)))))
    return op.add(builder.emit(op.maximum(x, _number(0.0))), tail)


def _transposed_1d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """A transposed convolution of rank 3 as one of rank 4 of height 1."""
    x, weight = call.args
    if not isinstance(weight, GenericConst):
        return call
    a = call.attrs
    before, after = (int(pad) for pad in a.padding)
    wide = builder.emit(op.expand_dims(x, 2))
    kernel = relax.const(np.expand_dims(weight.value.numpy(), 2))
    value = builder.emit(
        op.nn.conv2d_transpose(
            wide,
            kernel,
            strides=[1, int(a.strides[0])],
            padding=[0, before, 0, after],
            output_padding=[0, int(a.output_padding[0])],
            dilation=[1, int(a.dilation[0])],
            groups=int(a.groups),
        )
    )
    return op.squeeze(value, [2])


def _resize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Every resampling of a plane is linear, one axis after the other: R_h · x · R_wᵀ."""
    if call.attrs.layout != "NCHW":
        return call
    rows, columns = resize_matrices(call)
    value = builder.emit(op.matmul(call.args[0], relax.const(np.ascontiguousarray(columns.T))))
    return op.matmul(relax.const(rows), value)


_DECOMPOSITIONS: dict[str, Decomposition] = {
    "relax.clip": _clip,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.instance_norm": _instance_norm,
    "relax.nn.group_norm": _group_norm,
    "relax.nn.rms_norm": _rms_norm,
    "relax.nn.prelu": _prelu,
    "relax.nn.softplus": _softplus,
    "relax.nn.conv1d_transpose": _transposed_1d,
    "relax.std": _std,
    "relax.image.resize2d": _resize,
}
