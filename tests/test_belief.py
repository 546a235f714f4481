"""The belief against conditioning a dense Gaussian, and what it knows before anything is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_mpq.search import belief as module
from tvm_mpq.search.belief import Belief

Array = np.ndarray


def prior(seed: int, n: int, p: int) -> Belief:
    rng = np.random.default_rng(seed)
    return Belief(rng.normal(size=(n, p)), rng.uniform(0.1, 1.0, (n, p)), rng.uniform(0.0, 0.8, (n, p)))


def measured(seed: int, belief: Belief, plans: int) -> list[tuple[Array, float, float]]:
    rng = np.random.default_rng(seed)
    n, p = belief.mean.shape
    return [(rng.integers(0, p, n), float(rng.normal()), float(rng.uniform(0.05, 0.5))) for _ in range(plans)]


def dense(belief: Belief, plans: list[tuple[Array, float, float]]) -> tuple[Array, Array]:
    """Mean [N·P] and covariance of the choices' changes, given the plans: one at a time, as a Kalman filter."""
    v = belief.second_order.reshape(-1)
    mean = belief.mean.reshape(-1).copy()
    own = belief.error.reshape(-1) ** 2 + (module._OWN_FACTOR * v) ** 2
    covariance = np.diag(own) + module._UNKNOWN_FACTOR**2 * np.outer(v, v)
    for choices, change, error in plans:
        row = np.zeros(belief.mean.shape)
        row[np.arange(len(choices)), choices] = 1.0
        a = row.reshape(-1)
        seen = covariance @ a
        gain = seen / (a @ seen + error**2)
        mean = mean + gain * (change - a @ mean)
        covariance = covariance - np.outer(gain, seen)
    return mean, covariance


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_the_mean_is_that_of_the_conditioned_gaussian(seed: int, n: int, p: int, plans: int) -> None:
    belief = prior(seed, n, p)
    given_plans = measured(seed + 1, belief, plans)
    expected = dense(belief, given_plans)[0].reshape(n, p)
    for plan in given_plans:
        belief.measure(*plan)
    np.testing.assert_allclose(belief.costs(), expected, rtol=1e-6, atol=1e-8)


def test_draws_have_the_mean_and_covariance_of_the_conditioned_gaussian() -> None:
    belief = prior(0, 4, 3)
    plans = measured(1, belief, 5)
    for plan in plans:
        belief.measure(*plan)
    mean, covariance = dense(belief, plans)
    rng, count = np.random.default_rng(2), 20_000
    draws = np.stack([belief.draw(rng).reshape(-1) for _ in range(count)])
    scale = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(axis=0) - mean) / scale).max() < 5 / np.sqrt(count)
    # The error of a sample covariance, relative to both deviations, is at most √(2 / count).
    error = (np.cov(draws.T) - covariance) / np.outer(scale, scale)
    assert np.abs(error).max() < 5 * np.sqrt(2 / count)


def test_before_anything_is_measured_the_belief_is_the_prior() -> None:
    belief = prior(3, 3, 2)
    np.testing.assert_array_equal(belief.costs(), belief.mean)
    rng, count = np.random.default_rng(4), 20_000
    draws = np.stack([belief.draw(rng).reshape(-1) for _ in range(count)])
    mean, covariance = dense(belief, [])
    scale = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(axis=0) - mean) / scale).max() < 5 / np.sqrt(count)
    error = (np.cov(draws.T) - covariance) / np.outer(scale, scale)
    assert np.abs(error).max() < 5 * np.sqrt(2 / count)


def test_an_exact_measurement_is_believed() -> None:
    belief = prior(5, 4, 3)
    choices = np.array([2, 0, 1, 1])
    belief.measure(choices, 0.75, 0.0)
    rows = np.arange(4)
    assert belief.costs()[rows, choices].sum() == pytest.approx(0.75, abs=1e-6)
    assert belief.draw(np.random.default_rng(0))[rows, choices].sum() == pytest.approx(0.75, abs=1e-4)


def test_the_same_plan_twice_counts_twice() -> None:
    once, twice, sharp = (prior(6, 3, 3) for _ in range(3))
    choices = np.array([0, 1, 2])
    once.measure(choices, 1.0, 0.5)
    twice.measure(choices, 1.0, 0.5)
    twice.measure(choices, 1.0, 0.5)
    sharp.measure(choices, 1.0, 0.5 / np.sqrt(2))
    np.testing.assert_allclose(twice.costs(), sharp.costs(), atol=1e-9)
    assert np.abs(twice.costs() - once.costs()).max() > 1e-3


def test_a_plan_of_unknown_error_teaches_nothing() -> None:
    belief = prior(7, 3, 2)
    belief.measure(np.array([0, 1, 1]), 5.0, float("inf"))
    np.testing.assert_allclose(belief.costs(), belief.mean)
    assert np.isfinite(belief.draw(np.random.default_rng(0))).all()
