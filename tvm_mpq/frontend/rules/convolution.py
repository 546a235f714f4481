"""Conv with constant float32 weights, along one or two axes → ``conv2d`` or ``depthwise_conv2d``."""

from __future__ import annotations

from tvm_mpq.frontend.graph import Graph, Node, canonical
from tvm_mpq.frontend.rules.windows import window_of


def convert_convolution(graph: Graph, node: Node) -> bool:
    """Conv → ``conv(x [N,C,(H,)W], weight [K,C/g,(R,)S], bias [K] or none)`` with an explicit window.

    Convolutions along three axes, and with computed weights, stay with TVM's importer.
    """
    if not node.is_("Conv"):
        return False
    found, weight = graph.float_type(node.inputs[0]), graph.constant(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if found is None or weight is None or weight.ndim not in (3, 4) or (bias and bias not in graph.constants):
        return False
    window = window_of(node, found.shape[2:], weight.shape[2:])
    inputs = [node.inputs[0], node.inputs[1], *([bias] if bias else [])]
    new = canonical(
        "conv",
        node.name,
        inputs,
        node.outputs[0],
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        group=node.get("group", 1),
    )
    graph.replace([node], [new])
    return True


def lower_convolution(graph: Graph, node: Node) -> bool:
    """``conv`` → its final kind; a convolution along one axis becomes one of H = 1 between two reshapes."""
    if not node.is_kind("conv"):
        return False
    source, output = node.inputs[0], node.outputs[0]
    shape, weight = graph.types[source].shape, graph.constants[node.inputs[1]]
    group = node.get("group")
    kind = "depthwise_conv2d" if group == shape[1] > 1 else "conv2d"
    if weight.ndim == 4:
        graph.replace(
            [node], [Node(kind, node.name, node.inputs, node.outputs, node.attributes, node.domain)]
        )
        return True
    n, c, w = shape
    result = graph.types[output].shape
    flat = graph.add_tensor(source, (n, c, 1, w))
    made = graph.add_tensor(output, (result[0], result[1], 1, result[2]))
    weight_2d = graph.add_constant(node.inputs[1], weight[:, :, None, :])
    begin, end = node.get("pads")
    attributes = node.with_attributes(
        strides=[1, *node.get("strides")], dilations=[1, *node.get("dilations")], pads=[0, begin, 0, end]
    ).attributes
    inputs = (flat, weight_2d, *node.inputs[2:])
    graph.replace(
        [node],
        [
            canonical("reshape", f"{node.name}.to_2d", [source], flat),
            Node(kind, node.name, inputs, (made,), attributes, node.domain),
            canonical("reshape", f"{node.name}.to_1d", [made], output),
        ],
    )
    return True
