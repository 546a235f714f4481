"""Computing nodes whose inputs are all constants, with ONNX's own reference implementation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tvm_mpq.frontend.graph import Array, Node

_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


# The reference begins here, and older versions mean the same; Slice has this form since build_graph.
_REFERENCE_SINCE = {"DequantizeLinear": 19, "Slice": 13}


def node_proto(node: Node) -> onnx.NodeProto:
    """``node`` as ONNX writes it."""
    proto = helper.make_node(node.op_type, node.inputs, node.outputs, node.name, domain=node.domain or None)
    proto.attribute.extend(node.attributes.values())
    return proto


def constant_of(node: Node) -> Array | None:
    """The value of a ``Constant`` node of any form; None for forms that are no numbers."""
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        if name in node.attributes:
            return np.array(node.get(name), dtype)
    for name, dtype in (("value_floats", np.float32), ("value_ints", np.int64)):
        if name in node.attributes:
            return np.array(node.get(name), dtype)
    value = node.get("value")
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else None


def evaluate(node: Node, constants: Mapping[str, Array], opsets: Mapping[str, int]) -> list[Array] | None:
    """The outputs of ``node``, all of whose inputs are in ``constants``.

    None when there is no reference implementation, for random operators, and for results that are no tensors;
    the node then stays what it is.
    """
    if node.op_type in _RANDOM or node.captured:
        return None
    since = 1 if node.domain else _REFERENCE_SINCE.get(node.op_type, 1)
    opsets = {domain: version if domain else max(version, since) for domain, version in opsets.items()}
    names = list(dict.fromkeys(name for name in node.inputs if name))
    outputs = [name for name in node.outputs if name]
    # Undefined types: the reference implementation takes them from the arrays.
    graph = helper.make_graph(
        [node_proto(node)],
        "constant",
        [helper.make_value_info(name, onnx.TypeProto()) for name in names],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    )
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(outputs, {name: constants[name] for name in names})
    except Exception:
        # Whatever the reference lacks, TVM's importer may have; if not, its error names the node.
        return None
    if not all(isinstance(result, np.ndarray | np.generic) for result in results):
        return None
    return [np.asarray(result, order="C") for result in results]
