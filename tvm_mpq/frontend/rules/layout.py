"""Nodes without weights or windows: ``reshape``, ``permute_dims``, ``concat``, ``add``."""

from __future__ import annotations

import numpy as np

from tvm_mpq.frontend.graph import Graph, Node, canonical


def convert_reshape(graph: Graph, node: Node) -> bool:
    """Reshape, Flatten, Squeeze and Unsqueeze of float32 to the shape that inference found."""
    if not node.is_("Reshape", "Flatten", "Squeeze", "Unsqueeze") or graph.float_type(node.inputs[0]) is None:
        return False
    graph.replace([node], [canonical("reshape", node.name, node.inputs[:1], node.outputs[0])])
    return True


def simplify_reshape(graph: Graph, node: Node) -> bool:
    """A reshape to the same shape goes; of a reshape only the last counts."""
    if not node.is_kind("reshape"):
        return False
    source, output = node.inputs[0], node.outputs[0]
    if graph.types[source].shape == graph.types[output].shape and not graph.is_captured(output):
        graph.bypass(node, source)
        return True
    before = graph.producer(source)
    if before is None or not before.is_kind("reshape"):
        return False
    graph.replace([node], [canonical("reshape", node.name, before.inputs, output)])
    return True


def convert_transpose(graph: Graph, node: Node) -> bool:
    """Transpose of float32; one that moves only axes of size 1 is a reshape."""
    if not node.is_("Transpose"):
        return False
    found = graph.float_type(node.inputs[0])
    if found is None:
        return False
    order = node.get("perm") or list(range(len(found.shape)))[::-1]
    moved = [axis for axis in order if found.shape[axis] != 1]
    if moved == sorted(moved):
        new = canonical("reshape", node.name, node.inputs, node.outputs[0])
    else:
        new = canonical("permute_dims", node.name, node.inputs, node.outputs[0], perm=order)
    graph.replace([node], [new])
    return True


def convert_slice(graph: Graph, node: Node) -> bool:
    """Slice of float32 by constant bounds and steps of 1."""
    if not node.is_("Slice") or graph.float_type(node.inputs[0]) is None:
        return False
    shape = graph.types[node.inputs[0]].shape
    given = [graph.constant(name) if name else None for name in (*node.inputs[1:], "", "")[:4]]
    starts, ends, axes, steps = given
    named = [bool(name) for name in (*node.inputs[1:], "", "")[:4]]
    if any(name and value is None for name, value in zip(named, given, strict=True)):
        return False
    if starts is None or ends is None or (steps is not None and np.any(steps != 1)):
        return False
    places = list(range(len(starts))) if axes is None else [int(axis) % len(shape) for axis in axes]
    bounds = [
        (axis, *slice(int(start), int(end)).indices(shape[axis])[:2])
        for axis, start, end in zip(places, starts, ends, strict=True)
    ]
    moved = sorted(bound for bound in bounds if bound[1:] != (0, shape[bound[0]]))
    if not moved:
        return False
    cut, begins, stops = ([int(part) for part in parts] for parts in zip(*moved, strict=True))
    graph.replace([node], [_slice(node.name, node.inputs[0], node.outputs[0], cut, begins, stops)])
    return True


def convert_split(graph: Graph, node: Node) -> bool:
    """Split of float32: a slice for each part that is used."""
    if not node.is_("Split") or graph.float_type(node.inputs[0]) is None:
        return False
    axis = node.get("axis", 0) % len(graph.types[node.inputs[0]].shape)
    nodes, begin = [], 0
    for place, output in enumerate(node.outputs):
        end = begin + graph.types[output].shape[axis]
        if graph.uses(output):
            name = f"{node.name}.{place}" if place else node.name
            nodes.append(_slice(name, node.inputs[0], output, [axis], [begin], [end]))
        begin = end
    if len(node.outputs) < 2:
        return False
    graph.replace([node], nodes)
    return True


def _slice(name: str, source: str, output: str, axes: list[int], begins: list[int], ends: list[int]) -> Node:
    return canonical("slice", name, [source], output, axes=axes, begins=begins, ends=ends)


def convert_concat(graph: Graph, node: Node) -> bool:
    """Concat of two or more float32 activations."""
    if not node.is_("Concat") or len(node.inputs) < 2:
        return False
    if any(graph.float_type(name) is None for name in node.inputs):
        return False
    axis = node.get("axis") % len(graph.types[node.outputs[0]].shape)
    graph.replace([node], [canonical("concat", node.name, node.inputs, node.outputs[0], axis=axis)])
    return True


def convert_add(graph: Graph, node: Node) -> bool:
    """Add and Sum of float32 activations of equal shapes; a Sum of many is a chain of additions."""
    if not node.is_("Add", "Sum") or len(node.inputs) < 2:
        return False
    found = graph.types[node.outputs[0]]
    if any(graph.float_type(name) != found for name in node.inputs):
        return False
    left, nodes = node.inputs[0], []
    for place, right in enumerate(node.inputs[1:], 2):
        last = place == len(node.inputs)
        output = node.outputs[0] if last else graph.add_tensor(node.outputs[0], found.shape)
        name = node.name if last else f"{node.name}.{place - 1}"
        nodes.append(canonical("add", name, [left, right], output))
        left = output
    graph.replace([node], nodes)
    return True
