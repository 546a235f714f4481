"""Every floating-point tensor becomes float32: precisions are the plan's to choose, not the file's.

float16, bfloat16 and float64 inputs and outputs of the network keep their type, with a Cast beside them.
"""

from __future__ import annotations

import numpy as np
import onnx

from tvm_mpq.frontend.graph import Graph, Node, TensorType, make_attributes

_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def promote(graph: Graph) -> None:
    """Turn constants and types of other floats into float32, and make Casts that go nowhere Identities."""
    for name, value in graph.constants.items():
        if value.dtype.name in _OTHER_FLOATS:
            graph.constants[name] = value.astype(np.float32)
    if not any(found.dtype in _OTHER_FLOATS for found in graph.types.values()):
        return
    original = dict(graph.types)
    for name, found in original.items():
        if found.dtype in _OTHER_FLOATS and name not in graph.inputs:
            graph.types[name] = TensorType(found.shape, "float32")
    inner = {name: _cast_input(graph, name) for name in graph.inputs if original[name].dtype in _OTHER_FLOATS}
    float_codes = [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in _OTHER_FLOATS]
    for node in list(graph.nodes):
        attributes = {
            key: value.i
            for key, value in node.attributes.items()
            if key in ("to", "dtype") and value.i in float_codes
        }
        renamed = Node(
            node.op_type,
            node.name,
            tuple(inner.get(name, name) for name in node.inputs),
            node.outputs,
            {**node.attributes, **make_attributes({key: onnx.TensorProto.FLOAT for key in attributes})},
            node.domain,
            node.captured,
        )
        graph.replace([node], [renamed])
    casts = [
        Node("Cast", f"{name}.float32", (name,), (new,), make_attributes({"to": onnx.TensorProto.FLOAT}))
        for name, new in inner.items()
    ]
    graph.prepend(casts)
    for name in dict.fromkeys(graph.outputs):
        dtype = original[name].dtype if name in original else "float32"
        if dtype in _OTHER_FLOATS and name not in graph.inputs:
            code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            result = graph.add_tensor(name, original[name].shape, dtype)
            graph.append_output(
                Node("Cast", f"{name}.{dtype}", (name,), (result,), make_attributes({"to": code})),
                name,
                result,
            )


def _cast_input(graph: Graph, name: str) -> str:
    return graph.add_tensor(name, graph.types[name].shape, "float32")
