"""TVM's own ONNX importer, one node at a time: for every operator that has no canonical form."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend.evaluate import node_proto
from tvm_mpq.frontend.graph import Graph, Node, TensorType
from tvm_mpq.frontend.loading import first_line

# These nodes have got the form of this version or later, whatever the network's own is.
_FORM_SINCE = {"Resize": 13, "Slice": 13}


def import_node(graph: Graph, node: Node, output: str) -> tvm.IRModule:
    """A Relax module whose ``main`` takes what :func:`activations` lists and returns ``output`` of ``node``.

    Constants are inside it. Raises MpqError with operator type and node name where TVM cannot import it.
    """
    model = _one_node_model(graph, node, output)
    try:
        # The importer prints and warns about what the error below says.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tvm.relax.frontend.onnx import from_onnx

            return from_onnx(model, sanitize_input_names=False)
    except Exception as error:
        # TVM's own message for an unknown operator lists nothing but its type.
        reason = "" if isinstance(error, tvm.error.OpNotImplemented) else f": {first_line(error)}"
        raise MpqError(
            f"TVM cannot import operator {_type_name(node)} (node {node.name!r}){reason}"
        ) from None


def activations(graph: Graph, node: Node) -> list[str]:
    """The tensors ``node`` reads that are no constants, each once."""
    return [name for name in dict.fromkeys(node.reads) if name not in graph.constants]


def output_type(graph: Graph, node: Node, output: str) -> TensorType:
    """The type TVM finds for ``output`` of ``node``; raises MpqError unless it is a tensor of fixed shape."""
    return checked_type(node, import_node(graph, node, output)["main"])


def checked_type(node: Node, function: relax.Function) -> TensorType:
    """The type of what ``function``, made from ``node``, returns.

    Raises MpqError unless it is a tensor of fixed shape.
    """
    found = function.ret_ty
    if isinstance(found, relax.TensorType) and isinstance(found.shape, relax.ShapeExpr):
        sizes = list(found.shape.values)
        if all(isinstance(size, int | tvm.tirx.IntImm) for size in sizes):
            return TensorType(tuple(int(size) for size in sizes), str(found.dtype))
    raise MpqError(
        f"operator {_type_name(node)} (node {node.name!r}) gives a result whose shape depends on the data; "
        "only fixed shapes can be compiled"
    )


def _type_name(node: Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _one_node_model(graph: Graph, node: Node, output: str) -> onnx.ModelProto:
    initializers = [
        numpy_helper.from_array(np.asarray(graph.constants[name], order="C"), name)
        for name in dict.fromkeys(node.reads)
        if name in graph.constants
    ]
    inputs = []
    for name in activations(graph, node):
        found = graph.types[name]
        element_type = helper.np_dtype_to_tensor_dtype(np.dtype(found.dtype))
        inputs.append(helper.make_tensor_value_info(name, element_type, found.shape))
    body = helper.make_graph(
        [node_proto(node)], "node", inputs, [helper.make_value_info(output, onnx.TypeProto())], initializers
    )
    since = 1 if node.domain else _FORM_SINCE.get(node.op_type, 1)
    opsets = [
        helper.make_opsetid(domain, version if domain else max(version, since))
        for domain, version in graph.opsets.items()
    ]
    return helper.make_model(body, opset_imports=opsets)
