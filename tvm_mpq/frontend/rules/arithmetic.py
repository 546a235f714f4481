"""Arithmetic of two activations that broadcast, and what TVM's importer lacks: operands of different types."""

from __future__ import annotations

import numpy as np

from tvm_mpq.frontend.graph import Graph, Node, canonical

_KINDS = {"Add": "broadcast_add", "Sub": "sub", "Mul": "mul"}


def convert_power(graph: Graph, node: Node) -> bool:
    """Pow of floats by a constant of integers: the constant becomes float32, exact up to 2²⁴."""
    if not node.is_("Pow") or graph.float_type(node.inputs[0]) is None:
        return False
    exponent = graph.constant(node.inputs[1])
    if exponent is None or not np.issubdtype(exponent.dtype, np.integer):
        return False
    inputs = (node.inputs[0], graph.add_constant(node.inputs[1], exponent.astype(np.float32)))
    graph.replace([node], [Node(node.op_type, node.name, inputs, node.outputs, node.attributes)])
    return True


def convert_arithmetic(graph: Graph, node: Node) -> bool:
    """Mul, Sub, and Add of different shapes, of two float32 tensors of which one may be a finite constant.

    Both get the result's rank.
    """
    if not node.is_(*_KINDS) or graph.types[node.outputs[0]].dtype != "float32":
        return False
    values = [graph.constant(name) for name in node.inputs]
    if not any(value is None for value in values):
        return False
    # An infinite constant is a mask, and no weight.
    if any(value is not None and not np.all(np.isfinite(value)) for value in values):
        return False
    rank = len(graph.types[node.outputs[0]].shape)
    sources, nodes = [], []
    for place, (name, value) in enumerate(zip(node.inputs, values, strict=True)):
        shape = graph.types[name].shape if value is None else value.shape
        wide = (1,) * (rank - len(shape)) + shape
        if value is not None:
            sources.append(graph.add_constant(name, value.reshape(wide)))
        elif wide != shape:
            sources.append(graph.add_tensor(name, wide))
            nodes.append(canonical("reshape", f"{node.name}.rank_{place}", [name], sources[-1]))
        else:
            sources.append(name)
    nodes.append(canonical(_KINDS[node.op_type], node.name, sources, node.outputs[0]))
    graph.replace([node], nodes)
    return True
