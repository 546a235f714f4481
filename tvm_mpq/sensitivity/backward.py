"""Reverse accumulation: add the loss of a network and the adjoint of every operator to its canonical module.

    main(x…, labels…) = y_1 = op_1(x); …; loss = L(y_n…, labels…); g_n = adjoint_L(…); …; g_1 = adjoint_2(y_1, y_2, g_2)

The loss and the adjoints are operators like the network's own, so the passes that make fast kernels of those do it for
these too. What each operator contributes comes from :mod:`~tvm_mpq.sensitivity.adjoint`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax

from tvm_mpq.sensitivity.adjoint import Adjoint, Reference, adjoint, gate
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder, one_call
from tvm_mpq.sensitivity.losses import RelaxLoss
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.operator_body import read_body, shape_of

LOSS = "loss"
"""The operator, and output, that is the loss of each sample."""


@dataclass(frozen=True)
class Differentiated:
    """An operator with its gradients, inside a module that is being built.

    ``result`` is its output y, ``gradient`` ∂loss/∂y. ``input_gradients[i]`` is the part of the gradient of its i-th
    input that goes through this operator; None where nothing needs it.
    """

    name: str
    function: relax.Function
    inputs: tuple[relax.Var, ...]
    result: relax.Var
    gradient: relax.Var
    input_gradients: tuple[relax.Var | None, ...]


Visit = Callable[[CanonicalBuilder, Differentiated], None]


def before_activation(builder: CanonicalBuilder, operator: Differentiated) -> relax.Var:
    """∂loss/∂z where y = activation(z) is the output of ``operator``; added to ``builder`` where they differ."""
    body = read_body(operator.function)
    if (body.low, body.high) == (-math.inf, math.inf):
        return operator.gradient
    y, g = relax.Var("x0", operator.result.ty), relax.Var("x1", operator.gradient.ty)
    gated = one_call([y, g], gate(y, body.low, body.high, g))
    return builder.call(f"{operator.name}:gate", "gate", gated, [operator.result, operator.gradient])


def add_gradients(
    mod: tvm.IRModule,
    loss: RelaxLoss,
    wanted: Sequence[str],
    visit: Visit,
    every_input: bool = False,
) -> tuple[CanonicalBuilder, relax.Var]:
    """A builder of ``mod`` with gradients, and its loss [n].

    ``visit`` is called with each operator of ``wanted`` that the loss depends on, from last to first, as soon as its
    gradient is there, and may add operators of its own. With ``every_input`` the gradients by all inputs of these
    operators are computed. Raises MpqError for an operator on the way without a gradient, and where the loss does not
    fit the network's outputs.
    """
    backward = _Backward(mod, set(wanted), every_input, visit, CanonicalBuilder(mod))
    return backward.builder, backward.run(loss)


@dataclass
class _Backward:
    mod: tvm.IRModule
    wanted: set[str]
    every_input: bool
    visit: Visit
    builder: CanonicalBuilder
    totals: dict[relax.Var, relax.Var] = field(default_factory=dict)
    """Tensor → ∂loss/∂tensor, as far as it has been summed up."""

    def run(self, loss: RelaxLoss) -> relax.Var:
        calls, results = attr.calls(self.mod), attr.results(self.mod)
        function = loss.function([result.ty for result in results])
        extra = [self.builder.input(p.name, p.ty) for p in function.params[len(results) :]]
        arguments = [*results, *extra]
        per_sample = self.builder.call(LOSS, LOSS, function, arguments)
        ones = one_call([], relax.const(np.ones(shape_of(per_sample), np.float32)))
        self.totals[per_sample] = self.builder.call(f"{LOSS}:ones", "constant", ones, [])
        needed = self._needed(calls)
        named = function.with_attrs({attr.OPERATOR: LOSS, attr.KIND: LOSS})
        found = adjoint(named, self.mod, [argument in needed for argument in arguments])
        self._propagate(found, LOSS, arguments, per_sample)
        for variable, operator, call in reversed(calls):
            if variable in self.totals:
                self._through(variable, operator, list(call.args), needed)
        return per_sample

    def _needed(self, calls: list[tuple[relax.Var, relax.Function, relax.Call]]) -> set[relax.Var]:
        """Tensors whose gradients are wanted, or on the way to ones that are."""
        needed: set[relax.Var] = set()
        for variable, function, call in calls:
            here = attr.text(function, attr.OPERATOR) in self.wanted
            if here or any(argument in needed for argument in call.args):
                needed.add(variable)
        return needed

    def _through(
        self, variable: relax.Var, function: relax.Function, sources: list[relax.Var], needed: set[relax.Var]
    ) -> None:
        name = attr.text(function, attr.OPERATOR)
        asked = name in self.wanted
        found = adjoint(function, self.mod, [(self.every_input and asked) or s in needed for s in sources])
        gradient = self.totals[variable]
        parts = self._propagate(found, name, sources, variable)
        if asked:
            self.visit(
                self.builder, Differentiated(name, function, tuple(sources), variable, gradient, parts)
            )

    def _propagate(
        self, found: Adjoint, name: str, sources: Sequence[relax.Var], result: relax.Var
    ) -> tuple[relax.Var | None, ...]:
        """Add the pieces of an adjoint, and what they give to the totals of ``sources``."""
        pieces: list[relax.Var] = []

        def value(reference: Reference) -> relax.Var:
            where, index = reference
            if where == "piece":
                return pieces[index]
            return sources[index] if where == "x" else result if where == "y" else self.totals[result]

        for piece in found.pieces:
            label = f"{name}:gradient.{len(pieces)}"
            pieces.append(
                self.builder.call(label, piece.kind, piece.function, [value(r) for r in piece.arguments])
            )
        parts = tuple(None if reference is None else value(reference) for reference in found.results)
        for index, (source, part) in enumerate(zip(sources, parts, strict=True)):
            if part is None:
                continue
            if source in self.totals:
                part = self._sum(self.totals[source], part, f"{name}:sum.{index}")
            self.totals[source] = part
        return parts

    def _sum(self, a: relax.Var, b: relax.Var, name: str) -> relax.Var:
        parameters = [relax.Var("x0", a.ty), relax.Var("x1", b.ty)]
        return self.builder.call(name, "add", one_call(parameters, relax.op.add(*parameters)), [a, b])
