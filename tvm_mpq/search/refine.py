"""The refinement loop: propose a plan from what is believed, measure it, learn, and keep the best.

A proposal is the solver's answer, under the limits, for either the mean of the belief or a draw from it (Thompson
sampling: plans are tried as often as they are likely to be the best). Once a plan is known that meets the limits,
proposals may differ from the best one in a few operators only: the trust region of the linear model. It doubles while
it finds better plans and halves while it does not. It knows arrays and a function that measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tvm_mpq.search.belief import Belief
from tvm_mpq.search.change import Estimate
from tvm_mpq.search.goal import LOSS
from tvm_mpq.search.problem import Choices, Floats, Problem
from tvm_mpq.search.solver import CHANGES, Solution, near, solve

_GAP = 1e-3
_SMALLEST_REGION = 2
_DULL = 12
"""The search ends after so many proposals in turn that were known already."""


@dataclass(frozen=True)
class Measured:
    """A plan's change of the loss against the reference, its standard error over the samples, and other totals."""

    choices: Choices
    change: float
    error: float
    totals: Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """The best measured plan, all others in the order they were measured, and the limits that no plan can meet.

    ``binding`` names ``loss`` where the limit on it was met by none that was measured. ``loss`` [N, P] is what is
    believed of every choice in the end, but for a constant.
    """

    best: Measured
    measured: tuple[Measured, ...]
    binding: tuple[str, ...]
    loss: Floats


Measure = Callable[[Choices], Estimate]
Relinearize = Callable[[Choices], tuple[Floats, Floats, Floats]]


@dataclass
class Refinement:
    """``problem`` without its loss, the ``belief`` about that, and what is asked.

    ``limits`` are on latency and storage; ``max_loss`` on the change of the loss plus one standard error. ``measure``
    gives a plan's change of the loss and its standard error. ``relinearize`` gives estimates around a plan, as
    :class:`Belief` takes them; after half of the ``budget`` of measurements, or when nothing new is proposed, the best
    plan becomes the point around which the belief is linear. ``improved`` is told of each new best.
    """

    problem: Problem
    belief: Belief
    minimize: str
    limits: Mapping[str, float]
    max_loss: float
    measure: Measure
    budget: int
    seed: int = 0
    relinearize: Relinearize | None = None
    improved: Callable[[Measured], None] | None = None

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._measured: dict[bytes, Measured] = {}
        self._best: Measured | None = None
        self._offset = 0.0

    def run(self, starts: Sequence[Choices]) -> Found:
        """Measure ``starts``, then proposals until the budget is used up or nothing new is proposed.

        One measurement at least is left for a proposal, if there are two.
        """
        for start in starts[: max(1, self.budget - 1)]:
            self._try(start)
        binding = self._propose(self.belief.costs(), None).binding
        region, dull, half = float(len(self.problem.allowed)), 0, self.budget // 2
        while len(self._measured) < self.budget and dull < _DULL:
            late = len(self._measured) >= half or dull >= _DULL // 2
            if self.relinearize is not None and self._best is not None and late:
                self._recentre(self._best)
                dull = 0
            exploit = len(self._measured) % 2 == 0 and dull == 0
            costs = self.belief.costs() if exploit else self.belief.draw(self._rng)
            proposal = self._propose(costs, region if self._best is not None else None)
            better = self._try(proposal.choices)
            if better is None:
                dull += 1
                region = min(region * 2, float(len(self.problem.allowed)))
                continue
            dull = 0
            region = max(_SMALLEST_REGION, region * (2.0 if better else 0.8))
            region = min(region, float(len(self.problem.allowed)))
        return self._found(binding)

    def _try(self, choices: Choices) -> bool | None:
        """Measure a plan: whether it is the new best, None where it was measured before."""
        key = choices.tobytes()
        if key in self._measured:
            return None
        found = self.measure(choices)
        point = Measured(choices, found.change, found.error, self.problem.totals(choices))
        self._measured[key] = point
        self.belief.measure(choices, found.change - self._offset, found.error)
        if not self._better(point):
            return False
        self._best = point
        if self.improved is not None:
            self.improved(point)
        return True

    def _better(self, point: Measured) -> bool:
        if self._excess(point) > 0.0:
            return self._best is None or self._excess(point) < self._excess(self._best)
        if self._best is None or self._excess(self._best) > 0.0:
            return True
        return self._objective(point) < self._objective(self._best)

    def _objective(self, point: Measured) -> float:
        return point.change if self.minimize == LOSS else point.totals[self.minimize]

    def _excess(self, point: Measured) -> float:
        """By how much the limits are exceeded, each relative to its own span, 0 where all hold."""
        excess = sum(self._over(point, metric, limit) for metric, limit in self.limits.items())
        if math.isfinite(self.max_loss):
            excess += max(0.0, point.change + point.error - self.max_loss)
        return excess

    def _over(self, point: Measured, metric: str, limit: float) -> float:
        over = max(0.0, point.totals[metric] - limit) / (self.problem.span(metric) or 1.0)
        # Rounding of a sum is no excess.
        return over if over > 1e-9 else 0.0

    def _propose(self, loss: Floats, region: float | None) -> Solution:
        safe = np.where(self.problem.allowed, loss, 0.0)
        problem = replace(self.problem, costs={**self.problem.costs, LOSS: safe})
        limits = dict(self.limits)
        if math.isfinite(self.max_loss):
            errors = [point.error for point in self._measured.values()]
            limits[LOSS] = self.max_loss - self._offset - (float(np.median(errors)) if errors else 0.0)
        if region is None or self._best is None:
            return solve(problem, self.minimize, limits, gap=_GAP)
        around = near(problem, self._best.choices)
        return solve(around, self.minimize, {**limits, CHANGES: max(1.0, math.floor(region))}, gap=_GAP)

    def _recentre(self, centre: Measured) -> None:
        assert self.relinearize is not None
        self.belief = Belief(*self.relinearize(centre.choices))
        self._offset = centre.change
        self.relinearize = None
        for point in self._measured.values():
            self.belief.measure(point.choices, point.change - self._offset, point.error)

    def _found(self, binding: tuple[str, ...]) -> Found:
        assert self._best is not None
        if self._excess(self._best) <= 0.0:
            # What was believed of the loss may have ruled out all plans: some meet the limits all the same.
            binding = ()
        elif not binding:
            exceeded = [
                metric for metric, limit in self.limits.items() if self._over(self._best, metric, limit)
            ]
            binding = tuple(exceeded) or (LOSS,)
        return Found(self._best, tuple(self._measured.values()), binding, self.belief.costs())
