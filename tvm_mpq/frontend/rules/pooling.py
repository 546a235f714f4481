"""Pools on two axes → ``max_pool2d``, ``avg_pool2d`` and ``global_avg_pool``."""

from __future__ import annotations

import math

from tvm_mpq.frontend.graph import Graph, Node, canonical
from tvm_mpq.frontend.rules.windows import exact_pads, window_of


def convert_pool(graph: Graph, node: Node) -> bool:
    """MaxPool and AveragePool over [N, C, H, W]; ``ceil_mode`` becomes more padding at the ends."""
    if not node.is_("MaxPool", "AveragePool") or any(graph.uses(name) for name in node.outputs[1:]):
        return False
    found = graph.float_type(node.inputs[0])
    if found is None or len(found.shape) != 4:
        return False
    sizes, results = found.shape[2:], graph.types[node.outputs[0]].shape[2:]
    window = window_of(node, sizes, node.get("kernel_shape"))
    pads = exact_pads(window, sizes, results)
    attributes = {
        "kernel": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": pads,
    }
    kind = "max_pool2d"
    if node.op_type == "AveragePool":
        include = node.get("count_include_pad", 0)
        if include and pads != window.pads:
            # Padding added for rounding up must not count, that of the node must: no pool has both.
            return False
        kind, attributes["count_include_pad"] = "avg_pool2d", include
        if window.kernel == tuple(sizes) and not any(pads) and math.prod(window.dilations) == 1:
            kind, attributes = "global_avg_pool", {}
    graph.replace([node], [canonical(kind, node.name, node.inputs, node.outputs[0], **attributes)])
    return True


def convert_global_pool(graph: Graph, node: Node) -> bool:
    """GlobalAveragePool and GlobalMaxPool of any number of axes, which are folded into two first."""
    if not node.is_("GlobalAveragePool", "GlobalMaxPool"):
        return False
    found = graph.float_type(node.inputs[0])
    if found is None or len(found.shape) < 3:
        return False
    n, c, *sizes = found.shape
    source, output, nodes = node.inputs[0], node.outputs[0], []
    if len(sizes) != 2:
        sizes = [1, math.prod(sizes)]
        source = graph.add_tensor(source, (n, c, *sizes))
        nodes.append(canonical("reshape", f"{node.name}.to_2d", [node.inputs[0]], source))
        output = graph.add_tensor(output, (n, c, 1, 1))
    if node.op_type == "GlobalAveragePool":
        nodes.append(canonical("global_avg_pool", node.name, [source], output))
    else:
        pads, ones = [0] * 4, [1, 1]
        nodes.append(
            canonical(
                "max_pool2d",
                node.name,
                [source],
                output,
                kernel=sizes,
                strides=ones,
                dilations=ones,
                pads=pads,
            )
        )
    if output != node.outputs[0]:
        nodes.append(canonical("reshape", f"{node.name}.from_2d", [output], node.outputs[0]))
    graph.replace([node], nodes)
    return True


def convert_mean(graph: Graph, node: Node) -> bool:
    """ReduceMean over the last two of four axes: a global average pool, and a reshape if the axes go away."""
    if not node.is_("ReduceMean"):
        return False
    found = graph.float_type(node.inputs[0])
    axes = node.get("axes")
    if len(node.inputs) > 1 and node.inputs[1]:
        given = graph.constant(node.inputs[1])
        axes = None if given is None else given.tolist()
    if found is None or len(found.shape) != 4 or axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        return False
    source, output = node.inputs[0], node.outputs[0]
    if node.get("keepdims", 1):
        graph.replace([node], [canonical("global_avg_pool", node.name, [source], output)])
        return True
    pooled = graph.add_tensor(output, (*found.shape[:2], 1, 1))
    graph.replace(
        [node],
        [
            canonical("global_avg_pool", node.name, [source], pooled),
            canonical("reshape", f"{node.name}.reshape", [pooled], output),
        ],
    )
    return True
