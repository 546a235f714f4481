"""ConvTranspose with constant weights, along one or two axes → ``conv2d_transpose``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_mpq.frontend.graph import Array, Graph, Node, canonical


def convert_transposed(graph: Graph, node: Node) -> bool:
    """``conv2d_transpose(x [N,C,H,W], weight [C,K/g,R,S], bias [K] or none)``: explicit padding, no dilation.

    A dilated kernel has zeros in it instead; one axis becomes two of which H = 1. Padding that crops more than a kernel
    adds stays with TVM's importer.
    """
    if not node.is_("ConvTranspose"):
        return False
    found, weight = graph.float_type(node.inputs[0]), graph.constant(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if found is None or weight is None or weight.ndim not in (3, 4) or (bias and bias not in graph.constants):
        return False
    source, output = node.inputs[0], node.outputs[0]
    result = graph.types[output].shape
    axes = weight.ndim - 2
    strides = tuple(node.get("strides") or [1] * axes)
    weight = _dilated(weight, node.get("dilations") or [1] * axes)
    pads = _begin_pads(node, found.shape[2:], result[2:], strides, weight.shape[2:])
    ends = [
        (size - 1) * stride + kernel - begin - made
        for size, stride, kernel, begin, made in zip(
            found.shape[2:], strides, weight.shape[2:], pads, result[2:], strict=True
        )
    ]
    # What the output lacks behind the last window is output padding, less than a stride.
    extra = [max(-end, 0) for end in ends]
    ends = [max(end, 0) for end in ends]
    kernel = weight.shape[2:]
    cropped = any(pad >= size for pad, size in zip((*pads, *ends), kernel * 2, strict=True))
    if cropped or min(pads) < 0 or any(e >= s for e, s in zip(extra, strides, strict=True)):
        return False
    nodes = []
    if axes == 1:
        flat = graph.add_tensor(source, (*found.shape[:2], 1, found.shape[2]))
        nodes.append(canonical("reshape", f"{node.name}.to_2d", [source], flat))
        source, made = flat, graph.add_tensor(output, (*result[:2], 1, result[2]))
        weight = weight[:, :, None, :]
        strides, pads, ends, extra = (1, *strides), (0, *pads), [0, *ends], [0, *extra]
    else:
        made = output
    nodes.append(
        canonical(
            "conv2d_transpose",
            node.name,
            [source, graph.add_constant(node.inputs[1], weight), *([bias] if bias else [])],
            made,
            strides=strides,
            pads=[*pads, *ends],
            output_padding=extra,
            group=node.get("group", 1),
        )
    )
    if axes == 1:
        nodes.append(canonical("reshape", f"{node.name}.to_1d", [made], output))
    graph.replace([node], nodes)
    return True


def _dilated(weight: Array, dilations: Sequence[int]) -> Array:
    sizes = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    result = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    every = tuple(slice(None, None, step) for step in (1, 1, *dilations))
    result[every] = weight
    return result


def _begin_pads(
    node: Node, sizes: Sequence[int], results: Sequence[int], strides: Sequence[int], kernel: Sequence[int]
) -> tuple[int, ...]:
    """Elements cut off in front: given, or a share of all that is cut off, as ONNX's schema says."""
    axes = len(sizes)
    auto_pad = node.get("auto_pad", "NOTSET")
    if auto_pad == "VALID" or (auto_pad == "NOTSET" and not node.get("output_shape")):
        return tuple((node.get("pads") or [0] * 2 * axes)[:axes]) if auto_pad == "NOTSET" else (0,) * axes
    output_padding = node.get("output_padding") or [0] * axes
    totals = [
        (size - 1) * stride + extra + span - made
        for size, stride, extra, span, made in zip(
            sizes, strides, output_padding, kernel, results, strict=True
        )
    ]
    if auto_pad == "SAME_UPPER":
        return tuple(total // 2 for total in totals)
    return tuple(total - total // 2 for total in totals)
