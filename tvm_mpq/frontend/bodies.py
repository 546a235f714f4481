"""What the private function of each canonical kind computes, as ``docs/architecture.md`` lists it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import relax

from tvm_mpq.frontend.graph import Node
from tvm_mpq.pointwise import Pointwise

# builder, node, inputs (Var for an activation, array for a constant), shape of the result → the result
Body = Callable[[relax.BlockBuilder, Node, Sequence[Any], tuple[int, ...]], Any]


def _constant(value: Any) -> Any:
    return relax.const(tvm.runtime.tensor(value))


def _activate(builder: relax.BlockBuilder, node: Node, value: Any) -> Any:
    if "lo" not in node.attributes:
        return value
    lo, hi = node.get("lo"), node.get("hi")
    source = value if isinstance(value, relax.Var) else builder.emit(value)
    return relax.op.nn.relu(source) if (lo, hi) == (0.0, math.inf) else relax.op.clip(source, lo, hi)


def _conv2d(builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]) -> Any:
    value = relax.op.nn.conv2d(
        inputs[0],
        _constant(inputs[1]),
        strides=node.get("strides"),
        padding=node.get("pads"),
        dilation=node.get("dilations"),
        groups=node.get("group"),
    )
    if len(inputs) > 2:
        value = relax.op.add(builder.emit(value), _constant(inputs[2].reshape(1, -1, 1, 1)))
    return _activate(builder, node, value)


def _conv2d_transpose(
    builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]
) -> Any:
    value = relax.op.nn.conv2d_transpose(
        inputs[0],
        _constant(inputs[1]),
        strides=node.get("strides"),
        padding=node.get("pads"),
        output_padding=node.get("output_padding"),
        groups=node.get("group"),
    )
    if len(inputs) > 2:
        value = relax.op.add(builder.emit(value), _constant(inputs[2].reshape(1, -1, 1, 1)))
    return _activate(builder, node, value)


def _matmul(builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]) -> Any:
    value = relax.op.matmul(inputs[0], _constant(inputs[1]))
    if len(inputs) > 2:
        value = relax.op.add(builder.emit(value), _constant(inputs[2]))
    return _activate(builder, node, value)


def _binary(operator: Callable[..., Any]) -> Body:
    def body(builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]) -> Any:
        operands = [each if isinstance(each, relax.Var) else _constant(each) for each in inputs]
        return _activate(builder, node, operator(*operands))

    return body


def _activation(
    builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]
) -> Any:
    return _activate(builder, node, inputs[0])


def _pointwise(builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]) -> Any:
    def call(name: str, arguments: list[Any]) -> Any:
        return builder.emit(getattr(relax.op, name)(*arguments))

    function = Pointwise.from_json(node.get("steps"))
    return function.apply(inputs[0], call, lambda value: relax.const(value, "float32"))


def _pool(operator: Callable[..., Any]) -> Body:
    def body(builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]) -> Any:
        return operator(
            inputs[0],
            pool_size=node.get("kernel"),
            strides=node.get("strides"),
            padding=node.get("pads"),
            dilation=node.get("dilations"),
            count_include_pad=bool(node.get("count_include_pad", 0)),
        )

    return body


def _slice(builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]) -> Any:
    return relax.op.strided_slice(inputs[0], node.get("axes"), node.get("begins"), node.get("ends"))


def _resize(method: str) -> Body:
    def body(builder: relax.BlockBuilder, node: Node, inputs: Sequence[Any], shape: tuple[int, ...]) -> Any:
        return relax.op.image.resize2d(
            inputs[0],
            size=relax.ShapeExpr(shape[2:]),
            roi=[0.0] * 4,
            layout="NCHW",
            method=method,
            coordinate_transformation_mode=node.get("coordinates"),
            rounding_method=node.get("rounding"),
        )

    return body


BODIES: dict[str, Body] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _conv2d,
    "conv2d_transpose": _conv2d_transpose,
    "matmul": _matmul,
    "add": _binary(relax.op.add),
    "broadcast_add": _binary(relax.op.add),
    "sub": _binary(relax.op.subtract),
    "mul": _binary(relax.op.multiply),
    "activation": _activation,
    "pointwise": _pointwise,
    "sigmoid": _pointwise,
    "max_pool2d": _pool(relax.op.nn.max_pool2d),
    "avg_pool2d": _pool(relax.op.nn.avg_pool2d),
    "global_avg_pool": lambda builder, node, inputs, shape: relax.op.mean(inputs[0], [2, 3], keepdims=True),
    "concat": lambda builder, node, inputs, shape: relax.op.concat(list(inputs), node.get("axis")),
    "reshape": lambda builder, node, inputs, shape: relax.op.reshape(inputs[0], shape),
    "permute_dims": lambda builder, node, inputs, shape: relax.op.permute_dims(inputs[0], node.get("perm")),
    "slice": _slice,
    "resize_nearest": _resize("nearest_neighbor"),
    "resize_linear": _resize("linear"),
    "softmax": lambda builder, node, inputs, shape: relax.op.nn.softmax(inputs[0], node.get("axis")),
    "batch_matmul": lambda builder, node, inputs, shape: relax.op.matmul(*inputs),
    "layer_norm": lambda builder, node, inputs, shape: relax.op.nn.layer_norm(
        inputs[0], _constant(inputs[1]), _constant(inputs[2]), axes=[-1], epsilon=node.get("epsilon")
    ),
    "identity": lambda builder, node, inputs, shape: inputs[0],
    "constant": lambda builder, node, inputs, shape: _constant(inputs[0]),
}
"""Kind → body."""
