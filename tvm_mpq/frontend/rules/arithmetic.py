"""What ONNX allows and TVM's importer does not: operands of different types."""

from __future__ import annotations

import numpy as np

from tvm_mpq.frontend.graph import Graph, Node


def convert_power(graph: Graph, node: Node) -> bool:
    """Pow of floats by a constant of integers: the constant becomes float32, exact up to 2²⁴."""
    if not node.is_("Pow") or graph.float_type(node.inputs[0]) is None:
        return False
    exponent = graph.constant(node.inputs[1])
    if exponent is None or not np.issubdtype(exponent.dtype, np.integer):
        return False
    inputs = (node.inputs[0], graph.add_constant(node.inputs[1], exponent.astype(np.float32)))
    graph.replace([node], [Node(node.op_type, node.name, inputs, node.outputs, node.attributes)])
    return True
