"""From plans to arrays and back: what every precision of every operator costs, as the solver's problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import IRModule

from tvm_mpq.build import constant_bytes
from tvm_mpq.cost.table import CostTable
from tvm_mpq.frontend import Operator, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, W8A8, Precision
from tvm_mpq.quantization.half import holds
from tvm_mpq.quantization.storage import stored_bytes
from tvm_mpq.search.candidates import ROUNDED_KINDS, Candidates
from tvm_mpq.search.change import trust
from tvm_mpq.search.goal import LATENCY, LOSS, STORAGE
from tvm_mpq.search.problem import Boundary, Choices, Floats, Problem
from tvm_mpq.sensitivity.table import SensitivityTable
from tvm_mpq.transform.annotate import INTEGER_KINDS, MOVING_KINDS, WEIGHTED_KINDS
from tvm_mpq.transform.operator_body import read_body

_CHANNEL_BYTES = 8
"""An int32 bias and a float32 multiplier for each output channel of an operator with integer weights."""


@dataclass(frozen=True)
class ChoiceSpace:
    """Operators × precisions: ``names`` [N], ``precisions`` [P], ``allowed`` bool [N, P].

    ``storage`` (bytes) float64 [N, P] is of weights and biases; ``fixed_bytes`` no plan changes. An operator whose
    weights are not rounded, or that has none, has the choice between 8 bits and floats only; one that only moves
    elements has none. Floats of 16 bits are a choice for operators with weights that fit them.
    """

    names: tuple[str, ...]
    precisions: tuple[Precision, ...]
    allowed: np.typing.NDArray[np.bool_]
    storage: Floats
    fixed_bytes: int

    @classmethod
    def of(cls, mod: IRModule, precisions: Sequence[Precision], candidates: Candidates) -> ChoiceSpace:
        """The choices in the canonical ``mod`` among ``precisions``; fp32 is one where nothing else is possible."""
        chosen = tuple(dict.fromkeys([*precisions, FP32]))
        found = operators(mod)
        allowed = np.zeros((len(found), len(chosen)), bool)
        storage = np.zeros(allowed.shape)
        for row, operator in enumerate(found):
            possible = _floats(mod, operator, precisions)
            if operator.kind not in ROUNDED_KINDS:
                possible |= _without_rounding(operator.kind, chosen)
            for column, precision in enumerate(chosen):
                weights = candidates.weights.get((operator.name, str(precision)))
                allowed[row, column] = weights is not None or precision in possible
                if weights is not None:
                    storage[row, column] = stored_bytes(weights) + _CHANNEL_BYTES * len(weights.codes)
                elif operator.kind in WEIGHTED_KINDS:
                    storage[row, column] = _plain_bytes(mod, operator.global_var_name, precision)
        fp32 = int(storage[:, chosen.index(FP32)].sum())
        names = tuple(operator.name for operator in found)
        return cls(names, chosen, allowed, storage, constant_bytes(mod) - fp32)

    def plan(self, choices: Choices) -> PrecisionPlan:
        """The plan that ``choices`` int64 [N] stand for."""
        return PrecisionPlan({n: self.precisions[c] for n, c in zip(self.names, choices, strict=True)})

    def choices(self, plan: PrecisionPlan) -> Choices:
        """What ``plan`` chooses; where that is not allowed the like of it, else what the operator can have.

        The like of 8-bit activations is w8a8, or without it among the candidates the first with such activations; that
        of float ones is fp32.
        """
        place = {precision: column for column, precision in enumerate(self.precisions)}
        integer = [precision for precision in self.precisions if precision.integer_activations]
        eight = W8A8 if W8A8 in place else next(iter(integer), FP32)
        chosen = []
        for row, name in enumerate(self.names):
            wanted = plan[name]
            like = eight if wanted.integer_activations or wanted not in place else FP32
            columns = [place.get(wanted, place[like]), place[like], *np.flatnonzero(self.allowed[row])]
            chosen.append(next(column for column in columns if self.allowed[row, column]))
        return np.array(chosen, np.int64)

    def uniform(self, precision: Precision) -> Choices:
        """``precision`` wherever it is allowed."""
        return self.choices(PrecisionPlan.uniform(self.names, precision))

    def problem(self, loss: Floats, costs: CostTable) -> Problem:
        """The solver's problem with ``loss`` float64 [N, P] and the latencies (seconds) of ``costs``."""
        latency = np.zeros(self.allowed.shape)
        for row, name in enumerate(self.names):
            seconds = costs.operator_seconds[name]
            for column, precision in enumerate(self.precisions):
                if self.allowed[row, column]:
                    latency[row, column] = seconds[str(precision)]
        place = {name: row for row, name in enumerate(self.names)}
        boundaries = []
        for (producer, reader), pairs in costs.boundary_seconds.items():
            between = np.array(
                [[pairs.get((str(p), str(q)), 0.0) for q in self.precisions] for p in self.precisions]
            )
            if between.any():
                boundaries.append(Boundary(place[producer], place[reader], {LATENCY: between}))
        costs_by_metric = {LOSS: loss, LATENCY: latency, STORAGE: self.storage}
        return Problem(costs_by_metric, self.allowed, boundaries)


def loss_estimates(space: ChoiceSpace, table: SensitivityTable) -> tuple[Floats, Floats, Floats]:
    """The estimated change of the loss, the error of its first-order part and its second-order part, each [N, P].

    The first-order estimate of a choice counts by :func:`~tvm_mpq.search.change.trust`: of hundreds of estimates the
    most negative are mostly lucky. Choices without an entry are taken to change nothing.
    """
    shape, tried = space.allowed.shape, int(space.allowed.sum())
    mean, error, second = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for row, name in enumerate(space.names):
        for column, precision in enumerate(space.precisions):
            entry = table.entries.get((name, str(precision)))
            if entry is None or not space.allowed[row, column]:
                continue
            spread = entry.stderr if np.isfinite(entry.stderr) else abs(entry.mean)
            part = trust(entry.mean, spread, tried)
            mean[row, column] = part * entry.mean + entry.second_order
            error[row, column], second[row, column] = part * spread, entry.second_order
    return mean, error, second


def _plain_bytes(mod: IRModule, function: str, precision: Precision) -> int:
    """Bytes of an operator's weights and bias in fp32, or in so many bits without rounding."""
    body = read_body(mod[function])
    assert body.weight is not None
    biases = 0 if body.bias is None else body.bias.nbytes
    return body.weight.size * precision.weight_bits // 8 + biases


def _floats(mod: IRModule, operator: Operator, precisions: Sequence[Precision]) -> set[Precision]:
    """The floats among the candidates that the weights of ``operator`` can be stored in."""
    if operator.kind not in WEIGHTED_KINDS:
        return set()
    weight = read_body(mod[operator.global_var_name]).weight
    assert weight is not None
    return {p for p in precisions if p.floating is not None and (p == FP32 or holds(p.floating, weight))}


def _without_rounding(kind: str, precisions: Sequence[Precision]) -> set[Precision]:
    integer = [precision for precision in precisions if precision.integer_activations]
    eight = W8A8 if W8A8 in integer else next(iter(integer), FP32)
    if kind in MOVING_KINDS:
        return {eight}
    return {eight, FP32} if kind in INTEGER_KINDS else {FP32}
