"""Gemm, and MatMul by a constant matrix → ``matmul(x [.., C], weight [C, K], bias [K] or none)``."""

from __future__ import annotations

import numpy as np

from tvm_mpq.frontend.graph import Array, Graph, Node, canonical, make_attributes


def convert_matmul(graph: Graph, node: Node) -> bool:
    """MatMul of an activation by a constant matrix."""
    if not node.is_("MatMul"):
        return False
    found, weight = graph.float_type(node.inputs[0]), graph.constant(node.inputs[1])
    if found is None or len(found.shape) < 2 or weight is None or weight.ndim != 2:
        return False
    graph.replace([node], [canonical("matmul", node.name, node.inputs, node.outputs[0])])
    return True


def convert_batch_matmul(graph: Graph, node: Node) -> bool:
    """MatMul of two activations [.., M, K] and [.., K, N] with equal leading axes → ``batch_matmul``."""
    if not node.is_("MatMul"):
        return False
    found = [graph.float_type(name) for name in node.inputs]
    if found[0] is None or found[1] is None or len(found[0].shape) < 2 or len(found[1].shape) < 2:
        return False
    if found[0].shape[:-2] != found[1].shape[:-2]:
        return False
    graph.replace([node], [canonical("batch_matmul", node.name, node.inputs, node.outputs[0])])
    return True


def convert_gemm(graph: Graph, node: Node) -> bool:
    """``alpha · A' · B' + beta · C`` with constant B: factors go into constants, C is a bias or an Add."""
    if not node.is_("Gemm"):
        return False
    found, weight = graph.float_type(node.inputs[0]), graph.constant(node.inputs[1])
    addend = node.inputs[2] if len(node.inputs) > 2 else ""
    beta = float(node.get("beta", 1.0))
    if found is None or weight is None or (addend and addend not in graph.constants and beta != 1.0):
        return False
    matrix = (weight.T if node.get("transB", 0) else weight).astype(np.float64) * node.get("alpha", 1.0)
    rows, columns = graph.types[node.outputs[0]].shape
    source, nodes = node.inputs[0], []
    if node.get("transA", 0):
        source = graph.add_tensor(source, found.shape[::-1])
        permute = make_attributes({"perm": [1, 0]})
        nodes.append(Node("Transpose", f"{node.name}.transpose", (node.inputs[0],), (source,), permute))
    inputs = [source, graph.add_constant(node.inputs[1], matrix.astype(np.float32))]
    output, add = node.outputs[0], None
    if addend:
        bias = _row(graph.constants.get(addend), beta, rows, columns)
        if bias is not None:
            inputs.append(graph.add_constant(addend, bias))
        else:
            output = graph.add_tensor(output, (rows, columns))
            term = addend
            if addend in graph.constants:
                scaled = graph.constants[addend].astype(np.float64) * beta
                term = graph.add_constant(addend, scaled.astype(np.float32))
            add = Node("Add", f"{node.name}.add", (output, term), node.outputs)
    nodes.append(canonical("matmul", node.name, inputs, output))
    graph.replace([node], [*nodes, *([add] if add else [])])
    return True


def _row(value: Array | None, beta: float, rows: int, columns: int) -> Array | None:
    """``beta · value`` as float32 [columns] if every row of the result gets the same; None otherwise."""
    if value is None or (value.ndim == 2 and value.shape[0] != 1 and rows != 1):
        return None
    spread = np.broadcast_to(value.astype(np.float64) * beta, (rows, columns))
    return np.ascontiguousarray(spread[0], np.float32)
