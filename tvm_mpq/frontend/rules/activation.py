"""Relu, Clip, Min and Max by constants → ``activation``, and its way into the operator before it."""

from __future__ import annotations

import math

import numpy as np

from tvm_mpq.frontend.graph import Graph, Node, canonical

_CLIPPING = ("conv", "conv2d_transpose", "matmul", "add", "broadcast_add", "sub", "mul", "activation")
"""Kinds that apply bounds to what they make."""


def convert_activation(graph: Graph, node: Node) -> bool:
    """``activation(x)`` with bounds ``lo`` ≤ ``hi``, either of which may be infinite."""
    if not node.is_("Relu", "Clip", "Max", "Min"):
        return False
    found = _source_and_bounds(graph, node)
    if found is None:
        return False
    source, lo, hi = found
    if lo == -math.inf and hi == math.inf and not graph.is_captured(node.outputs[0]):
        graph.bypass(node, source)
        return True
    # ONNX: with crossed bounds everything becomes the upper one.
    new = canonical("activation", node.name, [source], node.outputs[0], lo=min(lo, hi), hi=hi)
    graph.replace([node], [new])
    return True


def fuse_activation(graph: Graph, node: Node) -> bool:
    """Let the convolution, matmul, addition or activation before ``node`` apply the bounds too."""
    if not node.is_kind("activation"):
        return False
    before = graph.sole_producer(node.inputs[0])
    if before is None or not before.is_kind(*_CLIPPING):
        return False
    lo, hi = node.get("lo"), node.get("hi")
    if "lo" in before.attributes:
        # Clipping what is clipped already: both bounds of the first go through the second.
        lo, hi = (min(max(before.get(end), lo), hi) for end in ("lo", "hi"))
    if not lo <= 0.0 < hi and before.op_type != "activation":
        # Every 8-bit grid holds zero, so that the operator could not clip by saturation: alone it is a table.
        return False
    new = before.with_attributes(lo=lo, hi=hi)
    new.outputs = node.outputs
    graph.replace([before, node], [new])
    return True


def _source_and_bounds(graph: Graph, node: Node) -> tuple[str, float, float] | None:
    if node.op_type in ("Max", "Min"):
        return _of_minimum_or_maximum(graph, node)
    source = node.inputs[0]
    if graph.float_type(source) is None:
        return None
    if node.op_type == "Relu":
        return source, 0.0, math.inf
    bounds = [float(node.get("min", -math.inf)), float(node.get("max", math.inf))]
    for place, name in enumerate(node.inputs[1:3]):
        if name:
            value = graph.constant(name)
            if value is None:
                return None
            bounds[place] = float(value.reshape(-1)[0])
    return source, bounds[0], bounds[1]


def _of_minimum_or_maximum(graph: Graph, node: Node) -> tuple[str, float, float] | None:
    sources = [name for name in node.inputs if name not in graph.constants]
    values = [graph.constants[name] for name in node.inputs if name in graph.constants]
    if len(sources) != 1 or not values or any(value.size != 1 for value in values):
        return None
    if graph.float_type(sources[0]) != graph.types[node.outputs[0]]:
        return None
    numbers = [float(value.reshape(-1)[0]) for value in values]
    if node.op_type == "Max":
        return sources[0], float(np.max(numbers)), math.inf
    return sources[0], -math.inf, float(np.min(numbers))
