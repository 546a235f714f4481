"""Batch norm, bias additions and constant factors become part of the weights before or behind them.

All of them are ``y = scale · x + shift`` with one scale and one shift a channel. Behind a convolution or
matmul, W · x + b, that gives (scale · W) · x + (scale · b + shift). In front of one,
W · (scale · x + shift) + b gives (W · scale) · x + (W · shift + b), as long as no zeros are padded in
between, which the shift would miss.
Computed in float64, rounded to float32 once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend.graph import Graph, Node, canonical

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """``scale · x + shift``, both [size of ``axis`` of ``source``], or scalars [] where ``axis`` is None."""

    source: str
    scale: Float64
    shift: Float64
    axis: int | None


def fold_behind(graph: Graph, node: Node) -> bool:
    """``node`` is affine, and the only reader of a convolution, transposed convolution or matmul."""
    affine = affine_of(graph, node)
    before = None if affine is None else graph.sole_producer(affine.source)
    if affine is None or before is None or "lo" in before.attributes:
        return False
    if before.is_("ConvTranspose"):
        return _fold_behind_transposed(graph, before, node, affine)
    if not before.is_kind("conv", "matmul"):
        return False
    weight = graph.constants[before.inputs[1]].astype(np.float64)
    channels = weight.shape[0] if before.op_type == "conv" else weight.shape[1]
    axis = 1 if before.op_type == "conv" else len(graph.types[affine.source].shape) - 1
    if affine.axis not in (None, axis):
        return False
    scale, shift = _spread(affine, channels)
    scaled = weight * (scale.reshape(-1, *[1] * (weight.ndim - 1)) if before.op_type == "conv" else scale)
    _replace(
        graph,
        [before, node],
        before,
        before.inputs[0],
        node.outputs[0],
        scaled,
        scale * _bias(graph, before, channels) + shift,
    )
    return True


def fold_in_front(graph: Graph, node: Node) -> bool:
    """``node`` is a convolution or matmul, and the only reader of something affine."""
    if not node.is_kind("conv", "matmul"):
        return False
    before = graph.sole_producer(node.inputs[0])
    affine = None if before is None else affine_of(graph, before)
    if before is None or affine is None:
        return False
    weight = graph.constants[node.inputs[1]].astype(np.float64)
    if node.op_type == "matmul":
        if affine.axis not in (None, len(graph.types[affine.source].shape) - 1):
            return False
        scale, shift = _spread(affine, weight.shape[0])
        scaled, extra = weight * scale[:, None], shift @ weight
    else:
        group = node.get("group")
        if affine.axis not in (None, 1) or (any(node.get("pads")) and np.any(affine.shift)):
            return False
        scale, shift = (part.reshape(group, 1, -1) for part in _spread(affine, weight.shape[1] * group))
        grouped = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        scaled = (grouped * scale[..., None]).reshape(weight.shape)
        extra = (grouped * shift[..., None]).sum(axis=(2, 3)).reshape(-1)
    bias = _bias(graph, node, len(extra)) + extra
    _replace(graph, [before, node], node, affine.source, node.outputs[0], scaled, bias)
    return True


def convert_batch_norm(graph: Graph, node: Node) -> bool:
    """A batch norm that nothing absorbed is a depthwise 1×1 convolution (over [N, C, (H,) W])."""
    if not node.is_("BatchNormalization"):
        return False
    affine = affine_of(graph, node)
    if affine is None or len(graph.types[affine.source].shape) not in (3, 4):
        return False
    rank = len(graph.types[affine.source].shape) - 2
    weight = graph.add_constant(node.inputs[1], affine.scale.astype(np.float32).reshape(-1, 1, *[1] * rank))
    bias = graph.add_constant(node.inputs[2], affine.shift.astype(np.float32))
    ones, pads = [1] * rank, [0] * (2 * rank)
    new = canonical(
        "conv",
        node.name,
        [affine.source, weight, bias],
        node.outputs[0],
        strides=ones,
        dilations=ones,
        pads=pads,
        group=len(affine.scale),
    )
    graph.replace([node], [new])
    return True


def affine_of(graph: Graph, node: Node) -> Affine | None:
    """``node`` as an affine map of its one activation, or None if it is none."""
    if node.is_("BatchNormalization"):
        return _of_batch_norm(graph, node)
    if not node.is_("Add", "Sub", "Mul", "Div"):
        return None
    left, right = node.inputs
    constant_left = left in graph.constants
    if constant_left == (right in graph.constants) or (constant_left and node.op_type == "Div"):
        return None
    source, value = (right, graph.constants[left]) if constant_left else (left, graph.constants[right])
    found = graph.float_type(source)
    if found is None or graph.types[node.outputs[0]].shape != found.shape:
        return None
    wide: Float64 = value.astype(np.float64).reshape((1,) * (len(found.shape) - value.ndim) + value.shape)
    axes = [axis for axis, size in enumerate(wide.shape) if size != 1]
    # An infinite term is a mask; in a bias it would be a mistake.
    if len(axes) > 1 or not np.all(np.isfinite(wide)):
        return None
    flat, axis = (wide.reshape(-1), axes[0]) if axes else (wide.reshape(()), None)
    one, zero = np.ones_like(flat), np.zeros_like(flat)
    if node.op_type == "Add":
        return Affine(source, one, flat, axis)
    if node.op_type == "Sub":
        return Affine(source, -one, flat, axis) if constant_left else Affine(source, one, -flat, axis)
    if node.op_type == "Mul":
        return Affine(source, flat, zero, axis)
    return Affine(source, 1.0 / flat, zero, axis) if np.all(flat) else None


def _of_batch_norm(graph: Graph, node: Node) -> Affine | None:
    if node.get("training_mode", 0) or any(graph.uses(name) for name in node.outputs[1:]):
        raise MpqError(
            f"operator BatchNormalization (node {node.name!r}) is in training mode: export for inference"
        )
    if graph.float_type(node.inputs[0]) is None or any(
        name not in graph.constants for name in node.inputs[1:5]
    ):
        return None
    if not node.get("spatial", 1):
        return None
    gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:5])
    if np.any(variance + node.get("epsilon", 1e-5) <= 0):
        raise MpqError(
            f"operator BatchNormalization (node {node.name!r}) has a variance that is not positive"
        )
    scale = gamma / np.sqrt(variance + node.get("epsilon", 1e-5))
    return Affine(node.inputs[0], scale, beta - mean * scale, 1)


def _fold_behind_transposed(graph: Graph, before: Node, node: Node, affine: Affine) -> bool:
    """A transposed convolution's weight is [C, K/g, …]: output channel k belongs to group k // (K/g)."""
    constants = [graph.constant(name) for name in before.inputs[1:] if name]
    if affine.axis not in (None, 1) or any(value is None for value in constants):
        return False
    weight = graph.constants[before.inputs[1]].astype(np.float64)
    group = before.get("group", 1)
    channels = weight.shape[1] * group
    scale, shift = _spread(affine, channels)
    grouped = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    scaled = (grouped * scale.reshape(group, 1, -1, 1)).reshape(weight.shape)
    bias = scale * _bias(graph, before, channels) + shift
    _replace(graph, [before, node], before, before.inputs[0], node.outputs[0], scaled, bias)
    return True


def _spread(affine: Affine, channels: int) -> tuple[Float64, Float64]:
    return np.broadcast_to(affine.scale, (channels,)), np.broadcast_to(affine.shift, (channels,))


def _bias(graph: Graph, node: Node, channels: int) -> Float64:
    if len(node.inputs) > 2 and node.inputs[2]:
        return graph.constants[node.inputs[2]].astype(np.float64)
    return np.zeros(channels)


def _replace(
    graph: Graph,
    old: list[Node],
    like: Node,
    source: str,
    output: str,
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any],
) -> None:
    """Put a node like ``like`` with new weights in the place of ``old``."""
    # What overflows here is reported with the operator's name when it is emitted.
    with np.errstate(over="ignore"):
        weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    names = [source, graph.add_constant(like.inputs[1], weight)]
    if np.any(bias) or len(like.inputs) > 2:
        names.append(graph.add_constant(f"{like.name}.bias", bias))
    graph.replace(old, [Node(like.op_type, like.name, tuple(names), (output,), like.attributes, like.domain)])
