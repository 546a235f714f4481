"""Copies of operators at other precisions, compared with the originals where the gradient is at hand.

For an operator y = f(x) with gradient g, and a candidate precision p, three kinds of operators are added:

    x̂ = round_to_grid(x)            x on its 8-bit grid, in float
    ŷ_x = f(x̂)                      → Σ (ŷ_x − y)·g: the part of input noise
    ŷ = f@p(x)                      → Σ (ŷ − y)·g, Σ (ŷ − y)²: input and weight noise together

f@p is what the pipeline makes of f at p: the integer kernel itself on x's grid, leaving 8 bits from its accumulator.
The rounding of y to its own grid is not part of it: that is input noise of whoever reads y, counted there, once for
each. Operators without weights have input noise only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tvm import relax
from tvm.relax import op

from tvm_mpq.precision import FP32, Precision
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.sensitivity.backward import Differentiated
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder, one_call
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import WEIGHTED_KINDS
from tvm_mpq.transform.operator_body import shape_of


@dataclass
class Candidates:
    """Adds the comparisons; given to :func:`~tvm_mpq.sensitivity.backward.add_gradients` as ``visit``.

    ``precisions`` are the candidates of each operator, ``grids`` the grid of each tensor of the network that an 8-bit
    operator may read. Filled while building: ``plan`` is the precision of what was added, ``total`` and ``by_input``
    the results [n, 2] of the comparisons, of an operator and precision and of an operator.
    """

    precisions: Mapping[str, Sequence[Precision]]
    grids: Mapping[relax.Var, Grid]
    plan: dict[str, Precision] = field(default_factory=dict)
    total: dict[tuple[str, str], relax.Var] = field(default_factory=dict)
    by_input: dict[str, relax.Var] = field(default_factory=dict)
    rounded: dict[relax.Var, relax.Var] = field(default_factory=dict)

    def __call__(self, builder: CanonicalBuilder, operator: Differentiated) -> None:
        """Compare every candidate of ``operator``."""
        candidates = self.precisions.get(operator.name, ())
        if any(p.integer_activations for p in candidates):
            rounded = [self._rounded(builder, x) for x in operator.inputs]
            noisy = self._copy(builder, operator, "rounded input", FP32, rounded)
            self.by_input[operator.name] = self._compared(builder, operator, noisy, "rounded input")
        if attr.text(operator.function, attr.KIND) not in WEIGHTED_KINDS:
            return
        for precision in candidates:
            name = str(precision)
            copy = self._copy(builder, operator, name, precision, operator.inputs)
            self.total[operator.name, name] = self._compared(builder, operator, copy, name)

    def _copy(
        self,
        builder: CanonicalBuilder,
        operator: Differentiated,
        label: str,
        precision: Precision,
        inputs: Sequence[relax.Var],
    ) -> relax.Var:
        name = copy_name(operator.name, label)
        self.plan[name] = precision
        return builder.call(name, attr.text(operator.function, attr.KIND), operator.function, inputs)

    def _rounded(self, builder: CanonicalBuilder, x: relax.Var) -> relax.Var:
        if x not in self.rounded:
            name = f"rounded {len(self.rounded)}"
            self.rounded[x] = builder.call(name, "pointwise", _round_to_grid(x, self.grids[x]), [x])
        return self.rounded[x]

    def _compared(
        self, builder: CanonicalBuilder, operator: Differentiated, noisy: relax.Var, label: str
    ) -> relax.Var:
        name = f"{copy_name(operator.name, label)} products"
        arguments = [noisy, operator.result, operator.gradient]
        return builder.call(name, "inner_products", _inner_products(noisy), arguments)


def copy_name(operator: str, label: str) -> str:
    """The name of the copy of ``operator`` that is called ``label``."""
    return f"{operator} at {label}"


def _round_to_grid(like: relax.Var, grid: Grid) -> relax.Function:
    """x ↦ (clip(rint(x / s) + z, 0, 2^bits − 1) − z) · s in steps of one element, as the kernels round."""
    x = relax.Var("x0", like.ty)
    value: relax.Expr = x
    steps = (
        (op.multiply, float(grid.inverse_scale)),
        (op.add, float(grid.zero_point)),
        (op.maximum, 0.0),
        (op.minimum, float(grid.maximum)),
        (op.subtract, float(grid.zero_point)),
        (op.multiply, grid.scale),
    )
    builder = relax.BlockBuilder()
    with builder.function("round", [x], private=True):
        with builder.dataflow():
            for place, (step, number) in enumerate(steps):
                value = builder.emit(step(value, relax.const(number, "float32")))
                if place == 0:
                    value = builder.emit(op.round(value))
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    return builder.get()["round"]


def _inner_products(like: relax.Var) -> relax.Function:
    """a, b, g → [n, 2]: for each sample Σ (a − b)·g and Σ (a − b)²."""
    a, b, g = (relax.Var(name, like.ty) for name in ("x0", "x1", "x2"))
    shape = shape_of(like)
    rows = (shape[0], int(np.prod(shape[1:])))
    difference = op.subtract(a, b)
    sums = [op.sum(op.reshape(op.multiply(difference, other), rows), [1], True) for other in (g, difference)]
    return one_call([a, b, g], op.concat(sums, 1))
