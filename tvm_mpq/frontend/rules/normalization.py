"""Layer norm over the last axis, in one operator or spelled out → ``layer_norm``."""

from __future__ import annotations

import numpy as np

from tvm_mpq.frontend.graph import Array, Graph, Node, canonical
from tvm_mpq.frontend.rules.reductions import reduced_axes


def convert_layer_norm(graph: Graph, node: Node) -> bool:
    """LayerNormalization over the last axis with constant scale and shift, whose statistics nobody reads."""
    if not node.is_("LayerNormalization") or any(graph.uses(name) for name in node.outputs[1:] if name):
        return False
    found, gamma = graph.float_type(node.inputs[0]), graph.constant(node.inputs[1])
    beta = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    if found is None or gamma is None or (len(node.inputs) > 2 and node.inputs[2] and beta is None):
        return False
    rank, size = len(found.shape), found.shape[-1]
    if node.get("axis", -1) % rank != rank - 1:
        return False
    beta = np.zeros(size, np.float32) if beta is None else beta
    _put(graph, [node], node, node.inputs[0], gamma, beta, node.get("epsilon", 1e-5))
    return True


def match_layer_norm(graph: Graph, node: Node) -> bool:
    """(x − mean(x)) / √(mean((x − mean(x))²) + ε), as exporters of old opsets write it."""
    if not node.is_("Div"):
        return False
    root = graph.made_by(node.inputs[1], "Sqrt")
    shifted = None if root is None else graph.made_by(root.inputs[0], "Add")
    if root is None or shifted is None:
        return False
    epsilon, variance = _number_and_tensor(graph, shifted)
    mean = None if variance is None else _mean_of_row(graph, variance)
    power = None if mean is None else graph.producer(mean.inputs[0])
    if epsilon is None or mean is None or power is None:
        return False
    centred = _centred(graph, node.inputs[0])
    if centred is None or _squared(graph, power) != centred:
        return False
    size = graph.types[centred].shape[-1]
    _put(graph, [node], node, centred, np.ones(size), np.zeros(size), epsilon)
    return True


def absorb_affine(graph: Graph, node: Node) -> bool:
    """A product or sum of a layer norm and a constant of the last axis is the layer norm's own scale or shift."""
    if not node.is_("Mul", "Add"):
        return False
    places = [place for place in (0, 1) if node.inputs[place] in graph.constants]
    if len(places) != 1:
        return False
    value, source = graph.constants[node.inputs[places[0]]], node.inputs[1 - places[0]]
    before = graph.sole_producer(source)
    if before is None or not before.is_kind("layer_norm"):
        return False
    size = graph.types[source].shape[-1]
    if value.size not in (1, size) or (value.size == size and value.ndim and value.shape[-1] != size):
        return False
    if graph.types[node.outputs[0]] != graph.types[source] or not np.all(np.isfinite(value)):
        return False
    row = np.broadcast_to(value.reshape(-1).astype(np.float64), (size,))
    gamma, beta = (graph.constants[name].astype(np.float64) for name in before.inputs[1:])
    gamma, beta = (gamma * row, beta * row) if node.op_type == "Mul" else (gamma, beta + row)
    _put(graph, [before, node], node, before.inputs[0], gamma, beta, before.get("epsilon"))
    return True


def _put(
    graph: Graph, old: list[Node], named: Node, source: str, gamma: Array, beta: Array, epsilon: float
) -> None:
    constants = [
        graph.add_constant(f"{named.name}.{name}", np.ascontiguousarray(value.reshape(-1), np.float32))
        for name, value in (("scale", gamma), ("shift", beta))
    ]
    new = canonical("layer_norm", named.name, [source, *constants], named.outputs[0], epsilon=float(epsilon))
    graph.replace(old, [new])


def _number_and_tensor(graph: Graph, node: Node) -> tuple[float | None, str | None]:
    for number, tensor in (node.inputs, node.inputs[::-1]):
        value = graph.constant(number)
        if value is not None and value.size == 1:
            return float(value.reshape(-1)[0]), tensor
    return None, None


def _mean_of_row(graph: Graph, tensor: str) -> Node | None:
    """The ReduceMean over the last axis, which it keeps, that makes ``tensor``."""
    found = graph.made_by(tensor, "ReduceMean")
    if found is None or graph.float_type(found.inputs[0]) is None or not found.get("keepdims", 1):
        return None
    rank = len(graph.types[found.inputs[0]].shape)
    return found if reduced_axes(graph, found) == [rank - 1] else None


def _centred(graph: Graph, tensor: str) -> str | None:
    """x where ``tensor`` is x less the mean of its row."""
    found = graph.made_by(tensor, "Sub")
    mean = None if found is None else _mean_of_row(graph, found.inputs[1])
    if found is None or mean is None or mean.inputs[0] != found.inputs[0]:
        return None
    return found.inputs[0]


def _squared(graph: Graph, node: Node) -> str | None:
    """x where ``node`` is the square of x less the mean of its row."""
    if node.is_("Mul") and node.inputs[0] == node.inputs[1]:
        return _centred(graph, node.inputs[0])
    exponent = graph.constant(node.inputs[1]) if node.is_("Pow") else None
    if exponent is None or exponent.size != 1 or float(exponent.reshape(-1)[0]) != 2.0:
        return None
    return _centred(graph, node.inputs[0])
