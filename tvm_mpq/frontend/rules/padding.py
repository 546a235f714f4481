"""Pad with zeros in front of a convolution or an average pool moves into that operator's own padding.

In front of a max pool, whose own padding is -infinity, the same holds for a Pad with -infinity.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvm_mpq.frontend.graph import Graph, Node


def fold_padding(graph: Graph, node: Node) -> bool:
    """Let ``node`` read what the Pad before it reads, and pad more itself."""
    if not node.is_kind("conv", "avg_pool2d", "max_pool2d"):
        return False
    pad = graph.made_by(node.inputs[0], "Pad")
    if pad is None or pad.inputs[0] not in graph.types:
        return False
    found = _constant_padding(graph, pad)
    if found is None:
        return False
    (before, after), value = found
    pads = node.get("pads")
    if any(before[:2]) or any(after[:2]) or min(*before, *after) < 0:
        return False
    attributes: dict[str, Any] = {
        "pads": [p + q for p, q in zip(pads, [*before[2:], *after[2:]], strict=True)]
    }
    if value != (-math.inf if node.op_type == "max_pool2d" else 0):
        return False
    if node.op_type == "avg_pool2d":
        # Zeros of the Pad count in every average, those of the pool itself only where it says so.
        if any(pads) and not node.get("count_include_pad"):
            return False
        attributes["count_include_pad"] = 1
    new = node.with_attributes(**attributes)
    new.inputs = (pad.inputs[0], *node.inputs[1:])
    graph.replace([node], [new])
    return True


def _constant_padding(graph: Graph, pad: Node) -> tuple[tuple[list[int], list[int]], float] | None:
    """Elements before and after each axis, and the value, of a Pad in mode constant; None for any other."""
    if pad.get("mode", "constant") != "constant":
        return None
    rank = len(graph.types[pad.inputs[0]].shape)
    if graph.opset < 11:
        pads = [int(size) for size in pad.get("pads")]
        return (pads[:rank], pads[rank:]), float(pad.get("value", 0.0))
    given = [graph.constant(name) if name else None for name in (*pad.inputs[1:], "", "")[:3]]
    named = [bool(name) for name in (*pad.inputs[1:], "", "")[:3]]
    if any(name and value is None for name, value in zip(named, given, strict=True)) or given[0] is None:
        return None
    amounts = [int(size) for size in given[0]]
    value = 0.0 if given[1] is None or given[1].size == 0 else float(np.asarray(given[1]).reshape(-1)[0])
    axes = list(range(rank)) if given[2] is None else [int(axis) % rank for axis in given[2]]
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = amounts[place], amounts[place + len(axes)]
    return (before, after), value
