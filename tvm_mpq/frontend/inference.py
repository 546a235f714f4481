"""From an ONNX network with fixed input shapes to a :class:`Graph` in which all that is constant is computed.

One walk in execution order: a node whose inputs are constants becomes constants, ``Shape`` and ``Size`` of a
known type too, an ``If`` with a known condition becomes its branch, and each other node gets the types of its
outputs from ONNX's shape inference, or from TVM's importer where that knows more.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend.delegate import output_type
from tvm_mpq.frontend.evaluate import constant_of, evaluate, node_proto
from tvm_mpq.frontend.graph import Array, Graph, Node, TensorType, numpy_name
from tvm_mpq.frontend.input_shapes import real_inputs

# Values of larger constants never decide a shape, and handing them over costs a copy.
_SHAPE_DATA_LIMIT = 4096
_SCHEMA_SINCE = {
    # Before, ONNX's inference counted windows that start in the padding at the end (``ceil_mode``); its text
    # rules them out and no runtime computes them.
    "AveragePool": 22,
    "MaxPool": 22,
    # See _modern.
    "Slice": 13,
}


def build_graph(model: onnx.ModelProto) -> Graph:
    """The graph of ``model``, whose inputs must have fixed shapes; raises MpqError as the module says."""
    proto = model.graph
    opsets = {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import
    }
    inputs = real_inputs(proto)
    types = {
        value.name: TensorType(
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
            numpy_name(value.type.tensor_type.elem_type),
        )
        for value in inputs
    }
    outputs = [value.name for value in proto.output]
    graph = Graph([], {}, [value.name for value in inputs], outputs, types, opsets)
    _walk(graph, proto, _Names(), {})
    rebuilt = Graph(graph.nodes, graph.constants, graph.inputs, outputs, graph.types, opsets)
    rebuilt.remove_dead()
    return rebuilt


class _Names:
    """Names of operators: the node's own, or ``<op_type>_<index>``; a suffix for one that is taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._index = 0

    def name(self, node: onnx.NodeProto) -> str:
        wanted = node.name or f"{node.op_type}_{self._index}"
        self._index += 1
        return unique_name(wanted, self._taken)


def unique_name(wanted: str, taken: set[str]) -> str:
    """``wanted``, or with ``_1``, ``_2``, … behind it if it is taken; the result is taken from now on."""
    name, suffix = wanted, 0
    while name in taken:
        suffix += 1
        name = f"{wanted}_{suffix}"
    taken.add(name)
    return name


def _walk(graph: Graph, proto: onnx.GraphProto, names: _Names, renamed: dict[str, str]) -> None:
    """Append the nodes of ``proto``; ``renamed`` maps its tensor names to the graph's where they differ."""
    for tensor in proto.initializer:
        graph.constants[renamed.get(tensor.name, tensor.name)] = numpy_helper.to_array(tensor)
    for sparse in proto.sparse_initializer:
        name = sparse.values.name
        graph.constants[renamed.get(name, name)] = _dense(sparse)
    needed = _needed(proto)
    for place, raw in enumerate(proto.node):
        # Unneeded nodes count, so that a name does not depend on which outputs are asked for.
        name = names.name(raw)
        if place not in needed:
            continue
        node = Node(
            raw.op_type,
            name,
            tuple(renamed.get(name, name) for name in raw.input),
            tuple(renamed.get(name, name) for name in raw.output),
            {attribute.name: attribute for attribute in raw.attribute},
            "" if raw.domain == "ai.onnx" else raw.domain,
            tuple(_captured(raw)),
        )
        condition = graph.constant(node.inputs[0]) if node.is_("If") else None
        if condition is not None:
            _inline_branch(graph, node, bool(np.asarray(condition).reshape(-1)[0]), names, renamed)
        else:
            if renamed and any(renamed.get(name, name) != name for name in node.captured):
                raise MpqError(
                    f"operator {node.op_type} (node {node.name!r}) inside an If cannot be imported"
                )
            _append(graph, node)


def _needed(proto: onnx.GraphProto) -> set[int]:
    """The places of the nodes that the outputs of ``proto`` need; what others lack is no obstacle."""
    wanted = {value.name for value in proto.output}
    places: set[int] = set()
    for place in range(len(proto.node) - 1, -1, -1):
        node = proto.node[place]
        if wanted.intersection(filter(None, node.output)):
            places.add(place)
            wanted.update((*node.input, *_captured(node)))
    return places


def _modern(graph: Graph, node: Node) -> Node:
    """Slice before opset 10 has its bounds in attributes; as inputs they mean the same."""
    if not node.is_("Slice") or "starts" not in node.attributes:
        return node
    axes = node.get("axes") or list(range(len(node.get("starts"))))
    bounds = [np.array(value, np.int64) for value in (node.get("starts"), node.get("ends"), axes)]
    inputs = [graph.add_constant(f"{node.name}.bounds", value) for value in bounds]
    return Node("Slice", node.name, (node.inputs[0], *inputs), node.outputs)


def _append(graph: Graph, node: Node) -> None:
    node = _modern(graph, node)
    values = _constant_results(graph, node)
    if values is not None:
        graph.constants.update(zip([name for name in node.outputs if name], values, strict=True))
        return
    graph.types.update(_output_types(graph, node))
    graph.nodes.append(node)


def _constant_results(graph: Graph, node: Node) -> list[Array] | None:
    if node.is_("Constant"):
        value = constant_of(node)
        return None if value is None else [value]
    if node.is_("Shape", "Size") and node.inputs[0] in graph.types:
        shape = np.array(graph.types[node.inputs[0]].shape, np.int64)
        if node.op_type == "Size":
            return [np.array(np.prod(shape), np.int64)]
        return [shape[slice(node.get("start", 0), node.get("end"))]]
    if all(name in graph.constants for name in node.reads):
        return evaluate(node, graph.constants, graph.opsets)
    return None


def _output_types(graph: Graph, node: Node) -> dict[str, TensorType]:
    inferred = _onnx_types(graph, node)
    types: dict[str, TensorType] = {}
    for name in node.outputs:
        found = _fixed(inferred[name]) if name in inferred else None
        # Unused further outputs (the indices of MaxPool) need no type; the first is always asked for.
        if found is None and (name == node.outputs[0]):
            found = output_type(graph, node, name)
        if found is not None:
            if min(found.shape, default=1) < 1:
                raise MpqError(
                    f"operator {node.op_type} (node {node.name!r}) gives an empty result, "
                    f"{list(found.shape)}: the input shapes are too small for it"
                )
            types[name] = found
    return types


def _onnx_types(graph: Graph, node: Node) -> dict[str, onnx.TypeProto]:
    version = graph.opsets.get(node.domain)
    if version is None or node.captured:
        return {}
    input_types: dict[str, onnx.TypeProto] = {}
    input_data: dict[str, onnx.TensorProto] = {}
    for name in filter(None, node.inputs):
        value = graph.constant(name)
        if value is not None:
            element_type = helper.np_dtype_to_tensor_dtype(value.dtype)
            input_types[name] = helper.make_tensor_type_proto(element_type, value.shape)
            if value.size <= _SHAPE_DATA_LIMIT:
                input_data[name] = numpy_helper.from_array(value, name)
        elif name in graph.types:
            found = graph.types[name]
            element_type = helper.np_dtype_to_tensor_dtype(np.dtype(found.dtype))
            input_types[name] = helper.make_tensor_type_proto(element_type, found.shape)
        else:
            raise MpqError(
                f"operator {node.op_type} (node {node.name!r}) reads {name!r}, "
                "which is no tensor of fixed shape"
            )
    try:
        version = version if node.domain else max(version, _SCHEMA_SINCE.get(node.op_type, 1))
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        opsets = [helper.make_opsetid(domain, number) for domain, number in graph.opsets.items()]
        return onnx.shape_inference.infer_node_outputs(
            schema, node_proto(node), input_types, input_data, opset_imports=opsets
        )
    except onnx.shape_inference.InferenceError as error:
        text = " ".join(str(error).split())
        raise MpqError(f"operator {node.op_type} (node {node.name!r}): {text}") from None
    except onnx.defs.SchemaError:
        return {}


def _fixed(found: onnx.TypeProto) -> TensorType | None:
    tensor = found.tensor_type
    if not found.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return TensorType(tuple(dim.dim_value for dim in tensor.shape.dim), numpy_name(tensor.elem_type))


def _inline_branch(graph: Graph, node: Node, condition: bool, names: _Names, outer: dict[str, str]) -> None:
    branch: onnx.GraphProto = node.get("then_branch" if condition else "else_branch")
    pairs = [
        (value.name, output) for value, output in zip(branch.output, node.outputs, strict=True) if output
    ]
    results = dict(reversed(pairs))
    renamed = dict(outer)
    own = [tensor.name for tensor in branch.initializer]
    own += [name for inner in branch.node for name in inner.output]
    for name in filter(None, own):
        renamed[name] = results[name] if name in results else graph.fresh(f"{node.name}.{name}")
    _walk(graph, branch, names, renamed)
    for inside, output in pairs:
        source = renamed.get(inside, inside)
        # A branch may return a tensor from around it, or one of its tensors twice.
        if source != output:
            _append(graph, Node("Identity", f"{node.name}.{inside}", (source,), (output,)))


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """The tensors that the bodies of ``node`` read but do not make."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            body = attribute.g
            inside = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            for inner in body.node:
                for name in (*inner.input, *_captured(inner)):
                    if name and name not in inside:
                        found[name] = None
                inside.update(inner.output)
            found.update((value.name, None) for value in body.output if value.name not in inside)
    return found


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
