"""Functions of each element of one tensor, however ONNX spells them → ``pointwise``."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tvm_mpq.frontend.graph import Graph, Node, canonical
from tvm_mpq.pointwise import Pointwise, X

_DIRECT = {
    "Abs": "abs",
    "Ceil": "ceil",
    "Cos": "cos",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "Log": "log",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sin": "sin",
    "Sqrt": "sqrt",
    "Tanh": "tanh",
}
_BINARY = {
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Max": "maximum",
    "Min": "minimum",
    "Pow": "power",
}
_KINDS = {"add": "add", "broadcast_add": "add", "mul": "multiply", "sub": "subtract"}
_POSITIVE, _NEGATIVE = X.then("maximum", 0.0), X.then("minimum", 0.0)
_SOFTPLUS = _POSITIVE.join(
    "add", X.then("abs").then("multiply", -1.0).then("exp").then("add", 1.0).then("log")
)


def _elu(scale: float, alpha: float, inner: float) -> Pointwise:
    """scale · (max(x, 0) + alpha · (exp(min(x, 0) / inner) − 1))."""
    curve = _NEGATIVE.then("divide", inner).then("exp").then("subtract", 1.0).then("multiply", alpha)
    return _POSITIVE.join("add", curve).then("multiply", scale)


def _gelu(node: Node) -> Pointwise:
    if node.get("approximate", "none") == "tanh":
        cubic = X.join("multiply", X).then("multiply", 0.044715).then("add", 1.0).join("multiply", X)
        gate = cubic.then("multiply", math.sqrt(2 / math.pi)).then("tanh")
    else:
        gate = X.then("multiply", math.sqrt(0.5)).then("erf")
    return X.then("multiply", 0.5).join("multiply", gate.then("add", 1.0))


def _hard_sigmoid(alpha: float, beta: float) -> Pointwise:
    return X.then("multiply", alpha).then("add", beta).then("maximum", 0.0).then("minimum", 1.0)


# The formulas and the attributes' defaults are those of ONNX's operator schemas.
_FORMULAS: dict[str, Callable[[Node], Pointwise]] = {
    "Neg": lambda node: X.then("multiply", -1.0),
    "Reciprocal": lambda node: X.then("divide", 1.0, swapped=True),
    "HardSigmoid": lambda node: _hard_sigmoid(node.get("alpha", 0.2), node.get("beta", 0.5)),
    "HardSwish": lambda node: X.join("multiply", _hard_sigmoid(1 / 6, 0.5)),
    "LeakyRelu": lambda node: _leaky(node.get("alpha", 0.01)),
    "Elu": lambda node: _elu(1.0, node.get("alpha", 1.0), 1.0),
    "Celu": lambda node: _elu(1.0, node.get("alpha", 1.0), node.get("alpha", 1.0)),
    "Selu": lambda node: _elu(
        node.get("gamma", 1.05070102214813232421875), node.get("alpha", 1.67326319217681884765625), 1.0
    ),
    "Softplus": lambda node: _SOFTPLUS,
    "Softsign": lambda node: X.join("divide", X.then("abs").then("add", 1.0)),
    "Mish": lambda node: X.join("multiply", _SOFTPLUS.then("tanh")),
    "Swish": lambda node: X.join("multiply", X.then("multiply", node.get("alpha", 1.0)).then("sigmoid")),
    "Gelu": _gelu,
}


def _leaky(slope: float) -> Pointwise:
    return _POSITIVE.join("add", _NEGATIVE.then("multiply", slope))


def convert_pointwise(graph: Graph, node: Node) -> bool:
    """An operator of one float32 activation, or of one and a number → ``pointwise(x)``."""
    if node.domain or len(node.outputs) != 1:
        return False
    found = _of_one_tensor(graph, node) or _of_a_tensor_and_a_number(graph, node)
    if found is None:
        return False
    source, function = found
    graph.replace([node], [_pointwise(node, source, function)])
    return True


def merge_pointwise(graph: Graph, node: Node) -> bool:
    """What reads only one tensor, through pointwise functions that nothing else reads, is one function of it."""
    if node.is_kind("pointwise", "activation"):
        source, inner, before = _root(graph, node.inputs[0])
        # A clip alone is better off in the operator before it.
        if before is None or (node.op_type == "activation" and before.op_type == "activation"):
            return False
        graph.replace([before, node], [_pointwise(node, source, _function(node).after(inner))])
        return True
    operation = _KINDS.get(node.op_type) if node.is_kind(*_KINDS) else None
    if node.is_(*_BINARY):
        operation = _BINARY[node.op_type]
    if operation is None or len(node.inputs) != 2:
        return False
    roots = [_root(graph, name) for name in node.inputs]
    (source, left, _), (other, right, _) = roots
    if source != other or graph.float_type(source) is None:
        return False
    function = left.join(operation, right)
    if "lo" in node.attributes:
        function = _clipped(function, node)
    old = [before for _, _, before in roots if before is not None]
    graph.replace([*old, node], [_pointwise(node, source, function)])
    return True


def name_sigmoid(graph: Graph, node: Node) -> bool:
    """A sigmoid and nothing else has a kind of its own: a network that ends in one gives probabilities."""
    if not node.is_kind("pointwise") or Pointwise.from_json(node.get("steps")) != X.then("sigmoid"):
        return False
    graph.replace(
        [node], [canonical("sigmoid", node.name, node.inputs, node.outputs[0], steps=node.get("steps"))]
    )
    return True


def _pointwise(node: Node, source: str, function: Pointwise) -> Node:
    return canonical("pointwise", node.name, [source], node.outputs[0], steps=function.to_json())


def _root(graph: Graph, tensor: str) -> tuple[str, Pointwise, Node | None]:
    """The tensor that ``tensor`` is a function of, the function, and the node that may be taken in."""
    before = graph.sole_producer(tensor)
    if before is None or not before.is_kind("pointwise", "activation"):
        return tensor, X, None
    return before.inputs[0], _function(before), before


def _function(node: Node) -> Pointwise:
    return Pointwise.from_json(node.get("steps")) if node.op_type == "pointwise" else _clipped(X, node)


def _clipped(function: Pointwise, node: Node) -> Pointwise:
    for bound, operation in (("lo", "maximum"), ("hi", "minimum")):
        if math.isfinite(node.get(bound)):
            function = function.then(operation, float(node.get(bound)))
    return function


def _of_one_tensor(graph: Graph, node: Node) -> tuple[str, Pointwise] | None:
    if len(node.inputs) != 1 or graph.float_type(node.inputs[0]) is None:
        return None
    if node.op_type in _DIRECT:
        return node.inputs[0], X.then(_DIRECT[node.op_type])
    formula = _FORMULAS.get(node.op_type)
    return None if formula is None else (node.inputs[0], formula(node))


def _of_a_tensor_and_a_number(graph: Graph, node: Node) -> tuple[str, Pointwise] | None:
    if node.op_type not in ("PRelu", *_BINARY) or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    swapped = left in graph.constants
    source, value = (right, graph.constant(left)) if swapped else (left, graph.constant(right))
    found = graph.float_type(source)
    if value is None or value.size != 1 or found is None or graph.types[node.outputs[0]] != found:
        return None
    number = float(np.asarray(value, np.float32).reshape(-1)[0])
    if not math.isfinite(number):
        return None
    if node.op_type == "PRelu":
        return (source, _leaky(number)) if not swapped else None
    if node.op_type == "Pow" and not swapped and number in (2.0, 3.0):
        square = X.join("multiply", X)
        return source, square if number == 2.0 else square.join("multiply", X)
    return source, X.then(_BINARY[node.op_type], number, swapped=swapped)
