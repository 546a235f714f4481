"""How far a measured change of the loss is believed, and the divergence that most of it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tvm_mpq.loss import LOSSES, divergence, get_loss
from tvm_mpq.runtime.evaluate import SampleLosses
from tvm_mpq.search.change import estimate, trust

numbers = st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6)
errors = st.floats(0.0, 1e6)
counts = st.integers(1, 10**6)


@given(numbers, errors, counts)
def test_trust_is_a_share_and_has_no_sign(mean: float, error: float, tried: int) -> None:
    assert 0.0 <= trust(mean, error, tried) <= 1.0
    assert trust(mean, error, tried) == trust(-mean, error, tried)
    assert trust(mean, 0.0, tried) == 1.0


@given(numbers, errors, errors, counts, counts)
def test_more_error_and_more_plans_deserve_less_trust(
    mean: float, error: float, more: float, tried: int, others: int
) -> None:
    assert trust(mean, error + more, tried) <= trust(mean, error, tried)
    assert trust(mean, error, tried + others) <= trust(mean, error, tried)
    assert trust(2 * mean, error, tried) >= trust(mean, error, tried)


def test_nothing_and_the_unknown_deserve_no_trust() -> None:
    assert trust(0.0, 0.0, 5) == 0.0
    assert trust(1.0, math.inf, 5) == 0.0
    assert trust(1.0, math.nan, 5) == 0.0


@given(st.integers(2, 10**5), st.floats(0.1, 10.0))
def test_what_the_luckiest_of_so_many_reaches_counts_nothing(tried: int, error: float) -> None:
    luck = error * math.sqrt(2 * math.log(tried))
    assert trust(luck * 0.999, error, tried) == 0.0
    assert trust(luck * 1.01, error, tried) > 0.0


def samples(seed: int, n: int = 200, shift: float = 0.0) -> SampleLosses:
    rng = np.random.default_rng(seed)
    return SampleLosses(rng.normal(1.0 + shift, 0.3, n), None)


def test_without_a_divergence_the_paired_change_counts_as_it_is() -> None:
    reference = samples(0)
    found = SampleLosses(reference.losses + np.random.default_rng(1).normal(0.02, 0.1, 200), None)
    delta = found.losses - reference.losses
    got = estimate(found, reference, 40)
    assert got.change == pytest.approx(delta.mean())
    assert got.error == pytest.approx(delta.std(ddof=1) / math.sqrt(200))
    assert estimate(reference, reference, 40).change == 0.0


def with_divergence(seed: int, signed: float, spread: float) -> tuple[SampleLosses, SampleLosses]:
    """Losses that changed by a divergence of 0.05 ± 0.01, and by ``signed`` ± ``spread`` more, and the reference."""
    rng, reference = np.random.default_rng(seed), samples(0)
    apart = np.abs(rng.normal(0.05, 0.01, 200))
    noise = rng.normal(0.0, 1.0, 200)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    return SampleLosses(reference.losses + apart + signed + spread * noise, None, apart), reference


def test_luck_is_taken_out_and_the_divergence_stays() -> None:
    # √(2 ln 40) = 2.7 standard errors of 0.3 / √200 is 0.058: a gain of 0.05 is no gain.
    found, reference = with_divergence(1, -0.05, 0.3)
    got = estimate(found, reference, 40)
    assert found.divergence is not None
    assert got.change == pytest.approx(found.divergence.mean())
    assert got.error == pytest.approx(found.divergence.std(ddof=1) / math.sqrt(200))


def test_what_stands_out_of_luck_counts_in_part() -> None:
    found, reference = with_divergence(2, -0.2, 0.3)
    assert found.divergence is not None
    error = 0.3 / math.sqrt(200)
    part = trust(-0.2, error, 40)
    assert 0.5 < part < 1.0
    got = estimate(found, reference, 40)
    assert got.change == pytest.approx(found.divergence.mean() - part * 0.2)
    apart = found.divergence.std(ddof=1) / math.sqrt(200)
    assert got.error == pytest.approx(math.hypot(apart, part * error))
    sure, _ = with_divergence(2, -0.2, 0.0)
    assert estimate(sure, reference, 40).change == pytest.approx(found.divergence.mean() - 0.2)


def test_the_estimate_is_nearer_to_the_truth_than_the_luckiest_measurement() -> None:
    """Forty plans that change nothing but for their divergence: the best measured one looks better than it is."""
    plans = []
    for seed in range(40):
        reference = samples(0, 100)
        rng = np.random.default_rng(seed + 10)
        apart = np.abs(rng.normal(0.01, 0.002, 100))
        found = SampleLosses(reference.losses + apart + rng.normal(0.0, 0.2, 100), None, apart)
        plans.append((estimate(found, reference, 40).change, float((found.losses - reference.losses).mean())))
    assert min(measured for _, measured in plans) < -0.02
    assert all(abs(change - 0.01) < 0.005 for change, _ in plans)


def test_one_sample_tells_nothing_of_its_error() -> None:
    found, reference = SampleLosses(np.array([1.0]), None), SampleLosses(np.array([0.5]), None)
    assert estimate(found, reference, 5).error == math.inf


def test_only_two_losses_have_a_divergence() -> None:
    found = {name for name in LOSSES if divergence(get_loss(name), False) is not None}
    assert found == {"cross-entropy", "mse"}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.booleans())
def test_the_divergence_of_cross_entropy_is_its_expected_change_under_fp32(
    seed: int, probabilities: bool
) -> None:
    """The labels' expectation is exact here: each class's loss weighted by fp32's probability of it."""
    rng = np.random.default_rng(seed)
    exact, other = rng.normal(size=(2, 6, 5)) * 2
    p, q = softmax(exact), softmax(other)
    outputs, reference = (q, p) if probabilities else (other, exact)
    loss = get_loss("cross-entropy", probabilities=probabilities)
    apart = divergence(loss, probabilities)
    assert apart is not None
    expected = np.zeros(6)
    for label in range(5):
        labels = np.full(6, label)
        change = loss.per_sample([outputs], labels) - loss.per_sample([reference], labels)
        expected += p[:, label] * change
    found = apart.per_sample([outputs], None, [reference])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(axis=1), rtol=1e-6, atol=1e-9)


def test_labels_drawn_from_fp32_change_the_loss_by_the_divergence_on_average() -> None:
    rng, n = np.random.default_rng(3), 20_000
    exact = rng.normal(size=(n, 4)) * 2
    other = exact + rng.normal(size=(n, 4)) * 0.5
    labels = (softmax(exact).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    loss = get_loss("cross-entropy")
    apart = divergence(loss, False)
    assert apart is not None
    change = loss.per_sample([other], labels) - loss.per_sample([exact], labels)
    rest = change - apart.per_sample([other], None, [exact])
    assert abs(rest.mean()) < 4 * rest.std() / math.sqrt(n)
    assert change.mean() > 20 * rest.std() / math.sqrt(n), "the change itself is no accident"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_the_divergence_of_mse_is_the_squared_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    exact, other, noise = rng.normal(size=(3, 4, 2, 3))
    loss = get_loss("mse")
    apart = divergence(loss, False)
    assert apart is not None
    found = apart.per_sample([other], None, [exact])
    np.testing.assert_allclose(found, ((other - exact) ** 2).mean(axis=(1, 2)))
    assume(np.abs(noise).min() > 0)
    # Labels to both sides of fp32's output: what is signed cancels.
    both = [
        loss.per_sample([other], exact + sign * noise) - loss.per_sample([exact], exact + sign * noise)
        for sign in (1, -1)
    ]
    np.testing.assert_allclose((both[0] + both[1]) / 2, found)
