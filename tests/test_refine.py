"""The refinement loop where the true loss is known: brute force says what it has to find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from tvm_mpq.search.belief import Belief
from tvm_mpq.search.change import Estimate
from tvm_mpq.search.goal import LATENCY, LOSS, STORAGE
from tvm_mpq.search.problem import Choices, Floats, Problem
from tvm_mpq.search.refine import Found, Measured, Refinement

N, P = 5, 3
BUDGET = 40


class Known:
    """Operators whose true losses add up; estimates of them are noisy, and measuring a plan is nearly exact."""

    def __init__(self, seed: int, noise: float = 0.5) -> None:
        rng = np.random.default_rng(seed)
        bits = np.array([8.0, 6.0, 4.0])
        size = rng.integers(1, 20, N).astype(float)
        storage = size[:, None] * bits
        latency = rng.uniform(1.0, 2.0, (N, P))
        self.truth = rng.exponential(1.0, (N, 1)) * np.array([0.0, 0.3, 1.0]) + rng.normal(0, 0.05, (N, P))
        estimates = self.truth + rng.normal(0.0, noise, (N, P))
        allowed = np.ones((N, P), bool)
        allowed[0, 1] = False
        self.problem = Problem({LATENCY: latency, STORAGE: storage, LOSS: np.zeros((N, P))}, allowed)
        self.belief = Belief(estimates, np.full((N, P), noise), np.abs(rng.normal(0.0, 0.1, (N, P))))
        self.measured: list[tuple[int, ...]] = []

    def loss(self, choices: Choices) -> float:
        return float(self.truth[np.arange(N), choices].sum())

    def measure(self, choices: Choices) -> Estimate:
        self.measured.append(tuple(choices.tolist()))
        return Estimate(self.loss(choices), 1e-3)

    def uniform(self, column: int) -> Choices:
        return np.array([column if row[column] else 0 for row in self.problem.allowed], np.int64)

    def starts(self) -> list[Choices]:
        return [self.uniform(column) for column in range(P)]

    def every(self) -> list[Choices]:
        rows = [np.flatnonzero(row) for row in self.problem.allowed]
        return [np.array(choices, np.int64) for choices in itertools.product(*rows)]

    def limit(self, share: float, metric: str = STORAGE) -> float:
        """A limit ``share`` of the way from the least to the most of a metric."""
        totals = [self.problem.totals(choices)[metric] for choices in self.every()]
        return min(totals) + share * (max(totals) - min(totals))

    def best(self, minimize: str, limits: Mapping[str, float], max_loss: float = math.inf) -> float:
        """The least of a metric that any plan within the limits has."""
        possible = []
        for choices in self.every():
            totals = {**self.problem.totals(choices), LOSS: self.loss(choices)}
            if all(totals[metric] <= limit for metric, limit in limits.items()) and (
                totals[LOSS] + 1e-3 <= max_loss
            ):
                possible.append(totals[minimize])
        return min(possible)

    def refine(
        self,
        minimize: str = LOSS,
        limits: Mapping[str, float] | None = None,
        max_loss: float = math.inf,
        budget: int = BUDGET,
        seed: int = 0,
        relinearize: Callable[[Choices], tuple[Floats, Floats, Floats]] | None = None,
        improved: Callable[[Measured], None] | None = None,
    ) -> Found:
        refinement = Refinement(
            self.problem,
            self.belief,
            minimize,
            limits or {},
            max_loss,
            self.measure,
            budget,
            seed,
            relinearize,
            improved,
        )
        return refinement.run(self.starts())


@pytest.mark.parametrize("seed", range(6))
def test_the_best_plan_under_a_limit_on_storage_is_found(seed: int) -> None:
    known = Known(seed)
    limits = {STORAGE: known.limit(0.4)}
    found = known.refine(limits=limits)
    assert found.binding == ()
    assert found.best.totals[STORAGE] <= limits[STORAGE]
    assert known.loss(found.best.choices) == pytest.approx(known.best(LOSS, limits), abs=1e-9)
    assert len(found.measured) <= BUDGET < len(known.every()), "not by trying everything"


def test_measuring_is_what_finds_it() -> None:
    """The estimates alone lead elsewhere in most of these problems."""
    missed = 0
    for seed in range(6):
        known = Known(seed)
        limits = {STORAGE: known.limit(0.4)}
        first = known.refine(limits=limits, budget=P + 1).measured[-1]
        missed += known.loss(first.choices) > known.best(LOSS, limits) + 1e-6
    assert missed >= 3


@pytest.mark.parametrize("seed", range(4))
def test_two_limits_hold_together(seed: int) -> None:
    known = Known(seed)
    limits = {STORAGE: known.limit(0.5), LATENCY: known.limit(0.5, LATENCY)}
    found = known.refine(limits=limits)
    assert all(found.best.totals[metric] <= limit for metric, limit in limits.items())
    assert known.loss(found.best.choices) <= known.best(LOSS, limits) + 0.05


@pytest.mark.parametrize("metric", [LATENCY, STORAGE])
@pytest.mark.parametrize("seed", range(3))
def test_latency_and_storage_are_minimized_under_a_limit_on_the_loss(metric: str, seed: int) -> None:
    known = Known(seed)
    losses = sorted(known.loss(choices) for choices in known.every())
    most = losses[len(losses) // 3]
    found = known.refine(metric, max_loss=most)
    assert found.binding == ()
    assert known.loss(found.best.choices) + found.best.error <= most
    best = known.best(metric, {}, most)
    assert best <= found.best.totals[metric] <= best + 0.05 * known.problem.span(metric)


def test_limits_that_no_plan_meets_are_named_and_the_nearest_plan_is_given() -> None:
    known = Known(1)
    least = known.limit(0.0)
    found = known.refine(limits={LATENCY: known.limit(1.0, LATENCY), STORAGE: least - 1.0}, budget=10)
    assert found.binding == (STORAGE,)
    assert found.best.totals[STORAGE] == least


@pytest.mark.parametrize("budget", [1, P, P + 1])
def test_storage_that_is_only_not_reached_yet_is_not_blamed_on_the_loss(budget: int) -> None:
    """A limit that no uniform plan meets, and measurements for little more than those: loss was not limited."""
    known = Known(2)
    known.problem.costs[STORAGE][:, 0] = [1.0, 50.0, 50.0, 50.0, 50.0]
    known.problem.costs[STORAGE][:, 2] = [50.0, 1.0, 50.0, 50.0, 50.0]
    known.problem.costs[STORAGE][:, 1] = [99.0, 50.0, 1.0, 1.0, 1.0]
    found = known.refine(limits={STORAGE: 5.0}, budget=budget)
    assert LOSS not in found.binding
    assert len(found.measured) <= budget


def test_a_loss_that_no_plan_has_is_named() -> None:
    known = Known(3)
    found = known.refine(STORAGE, max_loss=min(map(known.loss, known.every())) - 0.5)
    assert found.binding == (LOSS,)
    assert known.loss(found.best.choices) == pytest.approx(known.best(LOSS, {}), abs=0.1)


def test_estimates_too_dark_do_not_make_a_limit_bind() -> None:
    """A prior that takes every plan for far too lossy; those that are measured are not."""
    known = Known(4)
    known.belief = Belief(known.truth + 3.0, np.full((N, P), 0.3), np.zeros((N, P)))
    losses = sorted(map(known.loss, known.every()))
    found = known.refine(STORAGE, max_loss=losses[len(losses) // 4])
    assert known.loss(found.best.choices) + found.best.error <= losses[len(losses) // 4]
    assert found.binding == ()


def test_a_seed_gives_the_same_search_and_another_seed_another_one() -> None:
    runs = []
    for seed in (0, 0, 1):
        known = Known(5)
        known.refine(limits={STORAGE: known.limit(0.4)}, seed=seed)
        runs.append(known.measured)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_no_plan_is_measured_twice_and_the_budget_is_kept() -> None:
    known = Known(0)
    found = known.refine(budget=12)
    assert len(known.measured) == len(set(known.measured)) == len(found.measured) <= 12
    # A problem with fewer plans than the budget ends too.
    small = Known(0)
    small.problem.allowed[1:, 1:] = False
    found = small.refine(budget=1000)
    assert len(found.measured) <= 2
    assert small.loss(found.best.choices) == min(map(small.loss, small.every()))


def test_each_new_best_is_told_and_never_a_worse_one() -> None:
    known = Known(2)
    told: list[Measured] = []
    limits = {STORAGE: known.limit(0.3)}
    found = known.refine(limits=limits, improved=told.append)
    assert told[-1] is found.best
    within = [point.change for point in told if point.totals[STORAGE] <= limits[STORAGE]]
    assert within == sorted(within, reverse=True)
    inside = [point.totals[STORAGE] <= limits[STORAGE] for point in told]
    assert inside == sorted(inside), "once the limit holds it is never given up"


def test_gradients_are_taken_again_once_at_the_best_plan_and_used() -> None:
    """The first estimates point the wrong way and are sure of it; those around the best plan are the truth."""
    known = Known(0)
    limits = {STORAGE: known.limit(0.4)}
    known.belief = Belief(-known.truth, np.full((N, P), 0.2), np.zeros((N, P)))
    wrong = known.refine(limits=limits, budget=16)
    centres: list[Choices] = []
    told: list[Measured] = []

    def relinearize(centre: Choices) -> tuple[Floats, Floats, Floats]:
        assert told[-1].choices is centre, "at the best plan so far"
        centres.append(centre)
        rows = np.arange(N)
        mean = known.truth - known.truth[rows, centre][:, None]
        error = np.full((N, P), 1e-2)
        error[rows, centre] = 0.0
        return mean, error, np.zeros((N, P))

    known = Known(0)
    known.belief = Belief(-known.truth, np.full((N, P), 0.2), np.zeros((N, P)))
    found = known.refine(limits=limits, budget=16, relinearize=relinearize, improved=told.append)
    assert len(centres) == 1
    best = known.best(LOSS, limits)
    assert known.loss(found.best.choices) == pytest.approx(best, abs=1e-9)
    assert known.loss(wrong.best.choices) > best + 1e-3
    # What is believed in the end is the truth, but for a constant of each operator.
    spread = np.where(known.problem.allowed, found.loss - known.truth, np.nan)
    assert np.nanmax(np.nanmax(spread, axis=1) - np.nanmin(spread, axis=1)) < 0.1
