"""Resize and Upsample of every version, in the one form that TVM's importer computes as ONNX says: to sizes.

TVM samples at positions that follow from the two sizes. ONNX's scales mean the same as long as size · scale
is whole; where it is not, results would differ silently, and so they would without the antialiasing filter,
which TVM leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend.graph import Graph, Node, canonical, make_attributes

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
_KEPT = ("coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode", "nearest_mode")


def convert_resize(graph: Graph, node: Node) -> bool:
    """``Resize(x, sizes)`` with a size for every axis; raises MpqError as the module says."""
    if not node.is_("Resize", "Upsample") or _is_converted(node):
        return False
    found = graph.float_type(node.inputs[0])
    if found is None or node.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    sizes, results = found.shape, graph.types[node.outputs[0]].shape
    scales = _scales(graph, node, sizes, results)
    if scales is None:
        return False
    where = f"operator {node.op_type} (node {node.name!r}) from {list(sizes)} to {list(results)}"
    if any(
        abs(size * scale - result) > 1e-3 for size, scale, result in zip(sizes, scales, results, strict=True)
    ):
        raise MpqError(f"{where} has scales that give no whole sizes: use an input shape for which they do")
    if node.get("antialias", 0) and any(result < size for size, result in zip(sizes, results, strict=True)):
        raise MpqError(f"{where} uses antialiasing, which cannot be compiled: export it with antialias=0")
    attributes = {name: value for name, value in node.attributes.items() if name in _KEPT}
    if node.op_type == "Upsample" or graph.opset < 11:
        attributes |= make_attributes(
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        )
    elif node.get("coordinate_transformation_mode") == "half_pixel_symmetric":
        # The two differ by what is lost in rounding sizes: nothing, here.
        attributes |= make_attributes({"coordinate_transformation_mode": "half_pixel"})
    target = graph.add_constant(f"{node.name}.sizes", np.array(results, np.int64))
    new = Node("Resize", node.name, (node.inputs[0], "", "", target), node.outputs, attributes)
    graph.replace([node], [new])
    return True


def convert_resize_of_planes(graph: Graph, node: Node) -> bool:
    """A converted Resize of [N, C, H, W] along H and W, to the nearest element or linear in between → its kind."""
    if not node.is_("Resize") or not _is_converted(node):
        return False
    found = graph.float_type(node.inputs[0])
    result = graph.types[node.outputs[0]].shape
    if found is None or len(result) != 4 or found.shape[:2] != result[:2]:
        return False
    mode, coordinates = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear") or coordinates not in _COORDINATES:
        return False
    new = canonical(
        f"resize_{mode}",
        node.name,
        node.inputs[:1],
        node.outputs[0],
        coordinates=coordinates,
        rounding=node.get("nearest_mode", "round_prefer_floor"),
    )
    graph.replace([node], [new])
    return True


def _is_converted(node: Node) -> bool:
    return len(node.inputs) == 4 and node.inputs[1:3] == ("", "") and set(node.attributes) <= set(_KEPT)


def _scales(graph: Graph, node: Node, sizes: Sequence[int], results: Sequence[int]) -> list[float] | None:
    """The factor of each axis; None where it is not known."""
    axes = [axis % len(sizes) for axis in node.get("axes") or range(len(sizes))]
    inputs = (*node.inputs, "", "", "")
    place = 1 if node.op_type == "Upsample" or graph.opset < 11 else 2
    given = graph.constant(inputs[place])
    if "scales" in node.attributes:
        given = np.array(node.get("scales"))
    scales = [1.0] * len(sizes)
    if given is not None and given.size:
        factors = [float(factor) for factor in given]
    elif inputs[3] and graph.constant(inputs[3]) is not None:
        wanted = graph.constants[inputs[3]]
        factors = [float(size) / sizes[axis] for size, axis in zip(wanted, axes, strict=True)]
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(axes)
    else:
        return None
    for axis, factor in zip(axes, factors, strict=True):
        scales[axis] = factor
    return scales
