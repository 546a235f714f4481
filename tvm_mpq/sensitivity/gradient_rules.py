"""Gradients of Relax operators that TVM 0.27 lacks, or gets wrong for the networks that ONNX describes.

:func:`register` adds them to TVM's own table, where :class:`relax.transform.Gradient` finds them. A rule gets the
result's variable, the call and the adjoint of the result, and returns an adjoint for each argument.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from tvm import relax
from tvm.relax import op
from tvm.relax.op.base import register_gradient
from tvm.relax.op.grad import no_grad

from tvm_mpq.sensitivity.convolution_gradients import convolution_gradient, transposed_gradient
from tvm_mpq.sensitivity.linear_gradients import matmul_gradient, take_gradient
from tvm_mpq.sensitivity.pooling_gradients import max_pool_gradient
from tvm_mpq.transform.operator_body import shape_of

Rule = Callable[[relax.Var, relax.Call, relax.Var, relax.BlockBuilder], list[relax.Expr]]
Derivative = Callable[[relax.Expr, relax.Expr, relax.Call], relax.Expr]
"""x, f(x), the call → f'(x)."""

_PRIORITY = 15
"""Above TVM's own 10: these replace its rules of the same name."""


@functools.cache
def register() -> None:
    """Add every rule to TVM's table, once."""
    for name, derivative in _ELEMENTWISE.items():
        register_gradient(f"relax.{name}", _elementwise(derivative), _PRIORITY)
    for name in _FLAT:
        register_gradient(f"relax.{name}", _no_gradient, _PRIORITY)
    for name, rule in _RULES.items():
        register_gradient(f"relax.{name}", rule, _PRIORITY)


def _number(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def _erf_derivative(x: relax.Expr, y: relax.Expr, call: relax.Call) -> relax.Expr:
    return op.exp(op.negative(x * x)) * _number(2.0 / math.sqrt(math.pi))


def _gelu_derivative(x: relax.Expr, y: relax.Expr, call: relax.Call) -> relax.Expr:
    """Φ(x) + x·φ(x) for GELU(x) = x·Φ(x) with the normal distribution's Φ and density φ."""
    phi = op.exp(x * x * _number(-0.5)) * _number(1.0 / math.sqrt(2.0 * math.pi))
    return (op.erf(x * _number(math.sqrt(0.5))) + _number(1.0)) * _number(0.5) + x * phi


def _gelu_tanh_derivative(x: relax.Expr, y: relax.Expr, call: relax.Call) -> relax.Expr:
    root, cubic = math.sqrt(2.0 / math.pi), 0.044715
    t = op.tanh((x + x * x * x * _number(cubic)) * _number(root))
    inner = (x * x * _number(3.0 * cubic) + _number(1.0)) * _number(root)
    return (t + _number(1.0)) * _number(0.5) + x * (_number(1.0) - t * t) * inner * _number(0.5)


def _one_over(x: relax.Expr) -> relax.Expr:
    return _number(1.0) / x


_ELEMENTWISE: dict[str, Derivative] = {
    "erf": _erf_derivative,
    "nn.gelu": _gelu_derivative,
    "nn.gelu_tanh": _gelu_tanh_derivative,
    "nn.leakyrelu": lambda x, y, call: op.where(
        op.greater(x, _number(0.0)), _number(1.0), _number(float(call.attrs.alpha))
    ),
    "square": lambda x, y, call: x * _number(2.0),
    "rsqrt": lambda x, y, call: y * y * y * _number(-0.5),
    "tan": lambda x, y, call: y * y + _number(1.0),
    "asin": lambda x, y, call: op.rsqrt(_number(1.0) - x * x),
    "acos": lambda x, y, call: op.negative(op.rsqrt(_number(1.0) - x * x)),
    "atan": lambda x, y, call: _one_over(x * x + _number(1.0)),
    "sinh": lambda x, y, call: op.cosh(x),
    "cosh": lambda x, y, call: op.sinh(x),
    "asinh": lambda x, y, call: op.rsqrt(x * x + _number(1.0)),
    "acosh": lambda x, y, call: op.rsqrt(x * x - _number(1.0)),
    "atanh": lambda x, y, call: _one_over(_number(1.0) - x * x),
}
_FLAT = (
    "floor", "ceil", "round", "trunc", "sign", "logical_and", "logical_or", "logical_xor", "logical_not",
    "isnan", "isinf", "isfinite", "argmax", "argmin",
)  # fmt: skip
"""Operators whose results do not change, or jump, with their arguments."""


def _elementwise(derivative: Derivative) -> Rule:
    def rule(
        result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
    ) -> list[relax.Expr]:
        return [adjoint * derivative(call.args[0], result, call)]

    return rule


def _no_gradient(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    return [no_grad(argument) for argument in call.args]


def _same_elements(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """Squeeze and flatten: the elements in the same order."""
    return [op.reshape(adjoint, shape_of(call.args[0]))]


def _extremum(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """Max and min along axes: the adjoint goes to where the extremum is, in equal parts among equals."""
    x = call.args[0]
    shape = shape_of(x)
    given = call.attrs.axis
    axes = range(len(shape)) if given is None else [int(axis) % len(shape) for axis in given]
    kept = [1 if axis in axes else extent for axis, extent in enumerate(shape)]
    hit = op.astype(op.equal(x, op.reshape(result, kept)), "float32")
    share = op.reshape(adjoint, kept) / op.sum(hit, list(axes), keepdims=True)
    return [hit * share]


def _where(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """TVM's own rule, with the sums that broadcasting asks for."""
    condition, first, second = call.args
    zero = _number(0.0)
    wide = shape_of(result)
    return [
        no_grad(condition),
        _summed(op.where(condition, adjoint, zero), wide, first),
        _summed(op.where(condition, zero, adjoint), wide, second),
    ]


def _split(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """The adjoints of the parts side by side; TVM's own rule takes them for a single tensor."""
    if not isinstance(result.ty, relax.TupleType):
        return [adjoint]
    parts = [builder.emit(relax.TupleGetItem(adjoint, i)) for i in range(len(result.ty.fields))]
    return [op.concat(parts, int(call.attrs.axis))]


def _strided_slice(
    result: relax.Var, call: relax.Call, adjoint: relax.Var, builder: relax.BlockBuilder
) -> list[relax.Expr]:
    """The adjoint where the slice is from, zeros around it."""
    x, axes, begins, _, *strides = call.args
    if strides and any(int(step.value) != 1 for step in strides[0]):
        raise NotImplementedError("the gradient of a slice needs steps of 1")
    shape, sliced = shape_of(x), shape_of(result)
    around = [0] * (2 * len(shape))
    for axis, begin in zip(axes, begins, strict=True):
        at, extent = int(axis.value) % len(shape), int(begin.value)
        before = max(0, extent + shape[at] if extent < 0 else extent)
        around[2 * at : 2 * at + 2] = [before, shape[at] - before - sliced[at]]
    return [op.nn.pad(adjoint, around), *(no_grad(argument) for argument in call.args[1:])]


def _summed(value: relax.Expr, shape: tuple[int, ...], target: relax.Expr) -> relax.Expr:
    return value if shape_of(target) == shape else op.collapse_sum_to(value, shape_of(target))


_RULES: dict[str, Rule] = {
    "squeeze": _same_elements,
    "flatten": _same_elements,
    "nn.batch_flatten": _same_elements,
    "max": _extremum,
    "min": _extremum,
    "where": _where,
    "split": _split,
    "strided_slice": _strided_slice,
    "matmul": matmul_gradient,
    "take": take_gradient,
    "nn.conv2d": convolution_gradient,
    "nn.conv2d_transpose": transposed_gradient,
    "nn.max_pool2d": max_pool_gradient,
}
