"""Softmax, in one operator or spelled out → ``softmax``."""

from __future__ import annotations

import math

from tvm_mpq.frontend.graph import Graph, Node, canonical
from tvm_mpq.frontend.rules.reductions import reduced_axes


def convert_softmax(graph: Graph, node: Node) -> bool:
    """Softmax along one axis; before opset 13 along all axes from ``axis`` on, which a reshape makes one."""
    if not node.is_("Softmax"):
        return False
    found = graph.float_type(node.inputs[0])
    if found is None or not found.shape:
        return False
    source, output, rank = node.inputs[0], node.outputs[0], len(found.shape)
    axis = node.get("axis", -1 if graph.opset >= 13 else 1) % rank
    if graph.opset >= 13 or axis == rank - 1:
        graph.replace([node], [canonical("softmax", node.name, [source], output, axis=axis)])
        return True
    shape = (math.prod(found.shape[:axis]), math.prod(found.shape[axis:]))
    flat, made = graph.add_tensor(source, shape), graph.add_tensor(output, shape)
    graph.replace(
        [node],
        [
            canonical("reshape", f"{node.name}.flatten", [source], flat),
            canonical("softmax", node.name, [flat], made, axis=1),
            canonical("reshape", f"{node.name}.unflatten", [made], output),
        ],
    )
    return True


def match_softmax(graph: Graph, node: Node) -> bool:
    """exp(x − m) / Σ exp(x − m) along one axis, as JAX writes it; for any m that is the same along it.

    Kept as it is written, e.g. a cross-entropy would not know that the network ends in probabilities.
    """
    if not node.is_("Div") or graph.float_type(node.inputs[0]) is None:
        return False
    power, shape = graph.made_by(node.inputs[0], "Exp"), graph.types[node.inputs[0]].shape
    if power is None or graph.types[node.outputs[0]].shape != shape:
        return False
    axis = _summed_axis(graph, node.inputs[1], power.outputs[0])
    if axis is None:
        return False
    shift, source = graph.made_by(power.inputs[0], "Sub"), power.inputs[0]
    if shift is not None and graph.float_type(shift.inputs[0]) is not None:
        same = _unexpanded(graph, shift.inputs[1])
        if graph.types[shift.inputs[0]].shape == shape and _kept(graph, same, shape, axis):
            source = shift.inputs[0]
    graph.replace([node], [canonical("softmax", node.name, [source], node.outputs[0], axis=axis)])
    return True


def _summed_axis(graph: Graph, tensor: str, power: str) -> int | None:
    """The axis over which ``tensor``, which may be broadcast, is the sum of ``power``; None where it is not that."""
    shape, tensor = graph.types[power].shape, _unexpanded(graph, tensor)
    kept = graph.types[tensor].shape
    while (reshaped := graph.made_by(tensor, "Reshape", "Squeeze", "Unsqueeze")) is not None:
        tensor = reshaped.inputs[0]
    found = graph.made_by(tensor, "ReduceSum")
    if found is None or found.inputs[0] != power:
        return None
    axes = reduced_axes(graph, found)
    if axes is None or len(axes) != 1 or kept != (*shape[: axes[0]], 1, *shape[axes[0] + 1 :]):
        return None
    return axes[0]


def _unexpanded(graph: Graph, tensor: str) -> str:
    """What is broadcast to ``tensor``, or ``tensor`` itself."""
    found = graph.made_by(tensor, "Expand")
    if found is None:
        return tensor
    source = found.inputs[0]
    same_rank = len(graph.types[source].shape) == len(graph.types[tensor].shape)
    return source if same_rank else tensor


def _kept(graph: Graph, tensor: str, shape: tuple[int, ...], axis: int) -> bool:
    """Whether ``tensor`` has the rank of ``shape`` and one element along ``axis``."""
    found = graph.types[tensor].shape if tensor in graph.types else ()
    return len(found) == len(shape) and found[axis] == 1
