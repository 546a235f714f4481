"""From the normalised graph to the canonical Relax module of ``docs/architecture.md``."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend.bodies import BODIES
from tvm_mpq.frontend.delegate import activations, checked_type, import_node
from tvm_mpq.frontend.graph import CANONICAL, Graph, Node, TensorType, canonical
from tvm_mpq.frontend.inference import unique_name


def emit(graph: Graph, output_names: list[str]) -> tvm.IRModule:
    """The module; raises MpqError for weights that are not finite and for nodes that TVM cannot import.

    A node several of whose outputs are used becomes one operator for each of them: the first has the node's
    name, the others the name with ``.1``, ``.2``, … behind it.
    """
    builder = relax.BlockBuilder()
    _name_results_that_no_node_makes(graph)
    names: set[str] = set()
    identifiers: set[str] = {"main"}
    calls: list[tuple[str, tvm.ir.GlobalVar, list[str]]] = []
    for node in graph.nodes:
        used = [(place, name) for place, name in enumerate(node.outputs) if name and graph.uses(name)]
        for place, output in used:
            name = unique_name(f"{node.name}.{place}" if place else node.name, names)
            identifier = unique_name(_identifier(name), identifiers)
            if node.domain == CANONICAL:
                arguments, function = _add_canonical(builder, graph, node, name, identifier)
            else:
                arguments, function = _add_imported(builder, graph, node, output, name, identifier)
            calls.append((output, function, arguments))
    _add_main(builder, graph, calls, output_names)
    module = builder.get()
    relax.analysis.well_formed(module)
    return module


def _name_results_that_no_node_makes(graph: Graph) -> None:
    """Outputs that are inputs or constants get an operator, so that ``main`` holds nothing but calls."""
    for name in dict.fromkeys(graph.outputs):
        if graph.producer(name) is None:
            value = graph.constant(name)
            found = graph.types[name] if value is None else TensorType(value.shape, value.dtype.name)
            result = graph.add_tensor(name, found.shape, found.dtype)
            kind = "identity" if value is None else "constant"
            graph.append_output(canonical(kind, f"{name}.{kind}", [name], result), name, result)


def _add_canonical(
    builder: relax.BlockBuilder, graph: Graph, node: Node, name: str, identifier: str
) -> tuple[list[str], tvm.ir.GlobalVar]:
    arguments = [source for source in node.inputs if source not in graph.constants]
    parameters = [_variable(f"x{place}", graph.types[source]) for place, source in enumerate(arguments)]
    given = iter(parameters)
    inputs: list[Any] = []
    for source in node.inputs:
        value = graph.constant(source)
        if value is None:
            inputs.append(next(given))
            continue
        if node.op_type != "constant" and not np.all(np.isfinite(value)):
            raise MpqError(
                f"operator {name!r} has weights that are NaN or infinite once batch norm is folded in"
            )
        inputs.append(np.asarray(value, order="C"))
    with builder.function(identifier, parameters, attrs=_attributes(name, node.op_type), private=True):
        with builder.dataflow():
            body = BODIES[node.op_type](builder, node, inputs, graph.types[node.outputs[0]].shape)
            result = builder.emit_output(body)
        function = builder.emit_func_output(result)
    return arguments, function


def _add_imported(
    builder: relax.BlockBuilder, graph: Graph, node: Node, output: str, name: str, identifier: str
) -> tuple[list[str], tvm.ir.GlobalVar]:
    source = import_node(graph, node, output)
    main = source["main"]
    found = checked_type(node, main)
    expected = graph.types.get(output)
    if expected is not None and found != expected:
        raise MpqError(
            f"TVM imports operator {node.op_type} (node {node.name!r}) as {found.dtype}{list(found.shape)}, "
            f"ONNX says {expected.dtype}{list(expected.shape)}"
        )
    graph.types[output] = found
    renamed = {}
    for variable, function in source.functions_items():
        if variable.name_hint != "main":
            renamed[variable] = builder.add_func(function, variable.name_hint)
    moved = _Rename(renamed).visit_expr(main)
    bare = relax.Function(moved.params, moved.body, moved.ret_ty, moved.is_pure)
    kind = node.op_type.lower()
    # ONNX's own names of some kinds: what did not become one of them must not be taken for one.
    kind = f"onnx_{kind}" if kind in BODIES else kind
    return activations(graph, node), builder.add_func(bare.with_attrs(_attributes(name, kind)), identifier)


@mutator
class _Rename(PyExprMutator):  # type: ignore[misc]
    """Calls of one module's functions become calls of the same functions in another."""

    def __init__(self, renamed: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar]) -> None:
        super().__init__()
        self.renamed = renamed

    def visit_global_var_(self, op: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self.renamed.get(op, op)


def _add_main(
    builder: relax.BlockBuilder,
    graph: Graph,
    calls: list[tuple[str, tvm.ir.GlobalVar, list[str]]],
    output_names: list[str],
) -> None:
    parameters = [_variable(name, graph.types[name]) for name in graph.inputs]
    values: dict[str, Any] = dict(zip(graph.inputs, parameters, strict=True))
    attributes = {"mpq.inputs": list(graph.inputs), "mpq.outputs": output_names}
    single = graph.outputs[0] if len(graph.outputs) == 1 else None
    with builder.function("main", parameters, attrs=attributes):
        with builder.dataflow():
            for output, function, arguments in calls:
                call = relax.Call(function, [values[name] for name in arguments])
                values[output] = builder.emit_output(call) if output == single else builder.emit(call)
            if single is None:
                result = builder.emit_output(relax.Tuple([values[name] for name in graph.outputs]))
            else:
                result = values[single]
        builder.emit_func_output(result)


def _attributes(name: str, kind: str) -> dict[str, str]:
    return {"mpq.operator": name, "mpq.kind": kind}


def _variable(name: str, found: TensorType) -> relax.Var:
    return relax.Var(name, relax.TensorType(found.shape, found.dtype))


def _identifier(name: str) -> str:
    """``name`` as letters, digits and underscores."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "operator"
    return f"_{plain}" if plain[0].isdigit() else plain
