"""The paired bootstrap: coverage on simulated data, determinism, and its edges."""

import numpy as np
import pytest

from tvm_mpq.statistics import Interval, paired_bootstrap


def test_a_95_percent_interval_covers_the_true_mean_in_about_95_percent_of_experiments() -> None:
    generator = np.random.default_rng(7)
    truth, experiments = 0.3, 400
    covered = 0
    for seed in range(experiments):
        # Skewed, like differences of losses.
        deltas = generator.exponential(0.5, 200) - 0.5 + truth
        interval = paired_bootstrap(deltas, resamples=600, seed=seed)
        covered += interval.low <= truth <= interval.high
    # The standard error of the share is 1.1 points; the percentile interval loses about one at n = 200.
    assert 0.91 <= covered / experiments <= 0.98


def test_pairing_finds_a_change_far_smaller_than_the_spread_of_samples() -> None:
    generator = np.random.default_rng(1)
    before = generator.gamma(0.5, 2.0, 300)
    after = before - 0.01 + generator.normal(0.0, 0.02, 300)
    interval = paired_bootstrap(after - before)
    assert interval.significant
    assert interval.high < 0.0
    assert interval.mean == pytest.approx(float((after - before).mean()))
    unpaired = generator.permutation(after) - before
    assert not paired_bootstrap(unpaired).significant


def test_width_is_that_of_the_normal_approximation_for_normal_data() -> None:
    deltas = np.random.default_rng(2).normal(0.0, 1.0, 1000)
    interval = paired_bootstrap(deltas)
    expected = 2 * 1.96 * deltas.std() / np.sqrt(1000)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.03)
    wider = paired_bootstrap(deltas, level=0.99)
    assert wider.high - wider.low == pytest.approx(expected * 2.576 / 1.96, rel=0.05)


def test_a_seed_gives_the_same_interval_and_another_seed_another() -> None:
    deltas = np.random.default_rng(3).normal(size=100)
    assert paired_bootstrap(deltas, seed=5) == paired_bootstrap(deltas, seed=5)
    assert paired_bootstrap(deltas, seed=5) != paired_bootstrap(deltas, seed=6)


def test_many_samples_are_resampled_in_pieces() -> None:
    deltas = np.random.default_rng(4).normal(0.1, 1.0, 300_000)
    interval = paired_bootstrap(deltas, resamples=40)
    assert interval.low < interval.mean < interval.high
    assert interval.high - interval.low < 0.02


def test_equal_deltas_have_no_width_and_one_delta_no_end() -> None:
    assert paired_bootstrap(np.full(9, -0.25)) == Interval(-0.25, -0.25, -0.25)
    single = paired_bootstrap(np.array([-3.0]))
    assert (single.mean, single.low, single.high) == (-3.0, -np.inf, np.inf)
    assert not single.significant
    assert not Interval(0.0, 0.0, 0.0).significant


@pytest.mark.parametrize("deltas", [np.empty(0), np.zeros((2, 2)), np.array([0.0, np.nan])])
def test_what_is_no_vector_of_deltas_is_refused(deltas: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least one finite delta"):
        paired_bootstrap(deltas)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        paired_bootstrap(np.zeros(3), level=level)
