"""Nodes that change nothing in inference."""

from __future__ import annotations

import numpy as np

from tvm_mpq.frontend.graph import Graph, Node


def remove_identity(graph: Graph, node: Node) -> bool:
    """Identity, Dropout, a Cast to the same type, a Pad of nothing, a Concat of one, a same-shape Expand."""
    if node.domain or graph.is_captured(node.outputs[0]) or not _is_identity(graph, node):
        return False
    if any(graph.uses(output) for output in node.outputs[1:]):
        return False
    graph.bypass(node, node.inputs[0])
    return True


def _is_identity(graph: Graph, node: Node) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        return training is None or not bool(np.asarray(training).reshape(-1)[0])
    if node.op_type in (
        "Cast",
        "Expand",
        "Tile",
        "Slice",
        "Pad",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Flatten",
    ):
        # The same shape and type mean the same values; only a Pad could crop and pad, a Slice go backwards.
        same = graph.types.get(node.inputs[0]) == graph.types[node.outputs[0]]
        return same and (node.op_type not in ("Pad", "Slice") or _moves_nothing(graph, node))
    if node.op_type == "Concat":
        return len(node.inputs) == 1
    if node.op_type == "Sum":
        return len(node.inputs) == 1
    return False


def _moves_nothing(graph: Graph, node: Node) -> bool:
    if node.op_type == "Pad":
        pads = graph.constant(node.inputs[1]) if graph.opset >= 11 else np.array(node.get("pads"))
        return pads is not None and not np.any(pads)
    # Every element stays only if every step is 1; a step of -1 keeps the shape.
    if graph.opset < 10 or len(node.inputs) < 5 or not node.inputs[4]:
        return True
    steps = graph.constant(node.inputs[4])
    return steps is not None and bool(np.all(steps == 1))
