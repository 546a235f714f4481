"""Which axes an ONNX reduction runs over, whichever opset wrote it."""

from __future__ import annotations

from tvm_mpq.frontend.graph import Graph, Node


def reduced_axes(graph: Graph, node: Node) -> list[int] | None:
    """The axes of ``node``, counted from 0; None where they are not constant or not named."""
    axes = node.get("axes")
    if len(node.inputs) > 1 and node.inputs[1]:
        given = graph.constant(node.inputs[1])
        axes = None if given is None else given.reshape(-1).tolist()
    rank = len(graph.types[node.inputs[0]].shape)
    return None if axes is None else [int(axis) % rank for axis in axes]
