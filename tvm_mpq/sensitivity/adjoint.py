"""The adjoint of one operator, by Relax's own autodiff, in pieces that the project's kernels can run.

    y = f(x…), g = ∂loss/∂y   →   ∂loss/∂x_i = adjoint_i(x…, y, g)

:class:`relax.transform.Gradient` differentiates Σ f(x…)·g. Its result is cut: a convolution or matrix multiplication
by a constant becomes an operator of its own, which is then as fast as the forward ones; what lies between is one
function. Where f ends in an activation, its derivative is a gate that only needs y: f is differentiated as
``where(low < y < high, root(x…), 0)``, so that nothing of the forward pass is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir.expr import GenericConst

from tvm_mpq.errors import MpqError
from tvm_mpq.sensitivity import gradient_rules
from tvm_mpq.sensitivity.differentiable import Differentiable
from tvm_mpq.sensitivity.movement import selection
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.elementwise_body import is_elementwise_call
from tvm_mpq.transform.operator_body import bounds, shape_of
from tvm_mpq.transform.substitute import substituted

gradient_rules.register()

Reference = tuple[str, int]
"""A value in an adjoint: ("x", i) a parameter of the operator, ("y", 0), ("g", 0), or ("piece", k)."""
_Y, _G = ("y", 0), ("g", 0)


@dataclass(frozen=True)
class Piece:
    """A private function of kind ``kind`` and what it is called with."""

    kind: str
    function: relax.Function
    arguments: tuple[Reference, ...]


@dataclass(frozen=True)
class Adjoint:
    """``results[i]`` is ∂loss/∂x_i; None where x_i holds no floats or y does not depend on it."""

    pieces: tuple[Piece, ...]
    results: tuple[Reference | None, ...]


def adjoint(function: relax.Function, module: tvm.IRModule, wanted: Sequence[bool]) -> Adjoint:
    """The adjoint of ``function`` with respect to its parameters that are ``wanted``.

    ``module`` holds the TIR functions that it calls. Raises MpqError that names the operator where something in it
    has no gradient.
    """
    asked = [want and str(p.ty.dtype) == "float32" for want, p in zip(wanted, function.params, strict=True)]
    if not any(asked):
        return Adjoint((), tuple(None for _ in asked))
    module = _sum_of_products(function, module)
    parameters = list(module["main"].params)
    required = [p for p, want in zip(parameters[2:], asked, strict=True) if want]
    try:
        result = relax.transform.Gradient("main", required)(module)["main_adjoint"]
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise MpqError(
            f"operator {attr.text(function, attr.OPERATOR)!r} ({attr.text(function, attr.KIND)}) has no gradient: "
            f"{lines[-1].strip() if lines else type(error).__name__}"
        ) from error
    cutter = _Cutter(result, asked)
    results = cutter.results()
    return Adjoint(tuple(cutter.pieces), results)


def _sum_of_products(function: relax.Function, source: tvm.IRModule) -> tvm.IRModule:
    """``main(y, g, x…) = Σ f(x…)·g``, f's body made of what Relax differentiates; y as the gate of an activation."""
    builder = relax.BlockBuilder()
    y, g = relax.Var("y", function.ret_ty), relax.Var("g", function.ret_ty)
    inputs = [relax.Var(f"x{i}", p.ty) for i, p in enumerate(function.params)]
    moved = selection(function, source)
    with builder.function("main", [y, g, *inputs]):
        with builder.dataflow():
            value = _value(builder, function, inputs, y) if moved is None else moved.emit(builder, inputs[0])
            product = builder.emit(relax.op.multiply(value, g))
            total = builder.emit_output(relax.op.sum(product))
        builder.emit_func_output(total)
    return builder.get()


def _value(
    builder: relax.BlockBuilder, function: relax.Function, inputs: list[relax.Var], y: relax.Var
) -> relax.Expr:
    """f of ``inputs`` emitted in differentiable operators; an activation at its end as a gate that reads ``y``."""
    rewrite = Differentiable(builder, dict(zip(function.params, inputs, strict=True)))
    for block in function.body.blocks:
        for binding in block.bindings:
            value = binding.value
            gate = _gate(value, y) if binding.var == function.body.body else None
            if gate is None:
                rewrite.values[binding.var] = rewrite.emitted(value)
            else:
                rewrite.values[binding.var] = builder.emit(gate(rewrite.visit_expr(value.args[0])))
    return rewrite.values[function.body.body]


def _gate(value: relax.Expr, y: relax.Var) -> Callable[[relax.Expr], relax.Expr] | None:
    """The activation ``value`` as a function with the same derivative that takes its state from its result."""
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") not in (
        "relax.nn.relu",
        "relax.clip",
    ):
        return None
    low, high = bounds(value)
    if (low, high) == (-math.inf, math.inf):
        return lambda x: x
    return lambda x: gate(y, low, high, x)


def gate(y: relax.Expr, low: float, high: float, x: relax.Expr) -> relax.Expr:
    """``x`` where ``y`` is strictly inside ``low`` … ``high``, of which one is finite, and 0 elsewhere."""
    conditions = []
    if not math.isinf(low):
        conditions.append(relax.op.greater(y, relax.const(low, "float32")))
    if not math.isinf(high):
        conditions.append(relax.op.less(y, relax.const(high, "float32")))
    condition = conditions[0] if len(conditions) == 1 else relax.op.logical_and(*conditions)
    return relax.op.where(condition, x, relax.const(0.0, "float32"))


@dataclass
class _Cutter:
    """Reads the function that Gradient made and cuts it; ``pieces`` in the order in which they can run."""

    function: relax.Function
    asked: Sequence[bool]
    pieces: list[Piece] = field(default_factory=list)
    known: dict[relax.Var, Reference] = field(default_factory=dict)
    bound: dict[relax.Var, relax.Expr] = field(default_factory=dict)
    order: dict[relax.Var, int] = field(default_factory=dict)
    uses: dict[relax.Var, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        y, g, *inputs = self.function.params
        self.known = {y: _Y, g: _G} | {x: ("x", i) for i, x in enumerate(inputs)}
        for block in self.function.body.blocks:
            for binding in block.bindings:
                self.order[binding.var] = len(self.order)
                self.bound[binding.var] = binding.value
        products = [(var, value) for var, value in self.bound.items() if _is_product_with(value, g)]
        # The first is f(x…)·g. What Gradient calls the derivative of the sum by f(x…) is 1·g: g itself.
        (_, forward), *backward = products
        for var, value in backward:
            if value.args[0] not in self.known:
                self.known.setdefault(var, _G)
        if isinstance(forward.args[0], relax.Var) and not _is_gate(self.bound.get(forward.args[0]), y):
            self.known.setdefault(forward.args[0], _Y)

    def results(self) -> tuple[Reference | None, ...]:
        """Cut everything that the gradients depend on."""
        value: relax.Expr = self.function.body.body
        while not isinstance(value, relax.Tuple):
            value = self.bound[value]
        gradients = value.fields[1]
        while isinstance(gradients, relax.Var):
            gradients = self.bound[gradients]
        self._count_uses([field for field in gradients.fields if isinstance(field, relax.Var)])
        found = iter(gradients.fields)
        return tuple(self._reference(next(found)) if want else None for want in self.asked)

    def _count_uses(self, results: list[relax.Var]) -> None:
        """How often what the gradients depend on is read; what nothing needs reads nothing."""
        waiting = list(results)
        while waiting:
            var = waiting.pop()
            self.uses[var] = self.uses.get(var, 0) + 1
            if var not in self.known and self.uses[var] == 1:
                waiting += _variables(self.bound[var])

    def _reference(self, value: relax.Expr) -> Reference:
        while (
            isinstance(value, relax.Var)
            and value not in self.known
            and isinstance(self.bound[value], relax.Var)
        ):
            value = self.bound[value]
        if value in self.known:
            return self.known[value]
        expression = self.bound[value]
        if is_weighted(expression):
            inputs = [expression.args[0]]
            members = [value]
        else:
            members, inputs = self._slice(value)
        arguments = tuple(self._reference(argument) for argument in inputs)
        kind, function = self._piece(members, inputs)
        self.pieces.append(Piece(kind, function, arguments))
        self.known[value] = ("piece", len(self.pieces) - 1)
        return self.known[value]

    def _slice(self, root: relax.Var) -> tuple[list[relax.Var], list[relax.Expr]]:
        """The variables that are computed with ``root`` in one piece, in order, and those they take from outside.

        Elementwise calls stay among themselves: they run in any layout, others ask for ONNX's. What is read more than
        once is computed once, in a piece of its own; a tuple cannot be one.
        """
        members: set[relax.Var] = set()
        outside: dict[relax.Var, None] = {}
        waiting = [root]
        while waiting:
            var = waiting.pop()
            if var in members:
                continue
            shared = self.uses[var] > 1 and isinstance(var.ty, relax.TensorType)
            apart = shared or is_weighted(self.bound.get(var))
            apart = apart or self._elementwise(var) != self._elementwise(root)
            if var in self.known or (var != root and apart):
                outside[var] = None
                continue
            members.add(var)
            waiting += _variables(self.bound[var])
        return sorted(members, key=self.order.__getitem__), list(outside)

    def _elementwise(self, var: relax.Var) -> bool:
        value = self.bound.get(var)
        while isinstance(value, relax.Var):
            value = self.bound.get(value)
        return isinstance(var.ty, relax.TensorType) and is_elementwise_call(value, shape_of(var))

    def _piece(self, members: list[relax.Var], inputs: list[relax.Expr]) -> tuple[str, relax.Function]:
        parameters = [relax.Var(f"x{i}", argument.ty) for i, argument in enumerate(inputs)]
        builder = relax.BlockBuilder()
        values: dict[relax.Expr, relax.Expr] = dict(zip(inputs, parameters, strict=True))
        with builder.function("piece", parameters, private=True):
            with builder.dataflow():
                for var in members[:-1]:
                    values[var] = builder.emit(substituted(self.bound[var], values))
                result = builder.emit_output(substituted(self.bound[members[-1]], values))
            builder.emit_func_output(result)
        last = self.bound[members[-1]]
        return _kind(last, members), builder.get()["piece"]


def is_weighted(value: relax.Expr | None) -> bool:
    """Whether ``value`` is a float convolution or matrix multiplication by a constant, which has a templated kernel."""
    if not isinstance(value, relax.Call) or len(value.args) < 2:
        return False
    weight = value.args[1]
    if not isinstance(weight, GenericConst) or str(weight.ty.dtype) != "float32":
        return False
    name = getattr(value.op, "name", "")
    if name == "relax.matmul":
        return len(shape_of(weight)) == 2 and len(shape_of(value.args[0])) >= 2
    return (
        name == "relax.nn.conv2d"
        and value.attrs.data_layout == "NCHW"
        and value.attrs.kernel_layout == "OIHW"
    )


def _kind(value: relax.Expr, members: list[relax.Var]) -> str:
    if not is_weighted(value):
        name = getattr(getattr(value, "op", None), "name", "")
        moves = {"relax.reshape": "reshape", "relax.permute_dims": "permute_dims"}
        return moves.get(name, "adjoint") if len(members) == 1 else "adjoint"
    if value.op.name == "relax.matmul":
        return "matmul"
    groups = int(value.attrs.groups)
    return "depthwise_conv2d" if groups > 1 and groups == shape_of(value.args[0])[1] else "conv2d"


def _is_product_with(value: relax.Expr, g: relax.Var) -> bool:
    return (
        isinstance(value, relax.Call)
        and getattr(value.op, "name", "") == "relax.multiply"
        and len(value.args) == 2
        and value.args[1] == g
    )


def _is_gate(value: relax.Expr | None, y: relax.Var) -> bool:
    """Whether the differentiated function ends in a gate, whose value is not y."""
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.where"


def _variables(value: relax.Expr) -> list[relax.Var]:
    found: list[relax.Var] = []
    relax.analysis.post_order_visit(value, lambda e: found.append(e) if isinstance(e, relax.Var) else None)
    return found
