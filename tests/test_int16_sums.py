"""Codes whose sums fit int16: always fitting, changed no more than needed, scales no worse than the obvious two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_mpq.quantization.int16_sums import (
    LIMIT,
    SUM_WORDS,
    fit_sums,
    fitting_words,
    lanes,
    sum_scales,
    sums_fit,
)
from tvm_mpq.quantization.weights import round_weights, weight_scales

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 19), st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None, derandomize=True)
@given(shape=SHAPES, words=st.sampled_from([1, 2, 4]), seed=st.integers(0, 999))
def test_fitted_codes_cannot_saturate(shape: tuple[int, ...], words: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    fitted = fit_sums(codes, codes, words)
    assert fitted.shape == codes.shape
    assert fitting_words(fitted) >= words
    after, before = (lanes(c.astype(np.int64), words) for c in (fitted, codes))
    # Activations of 255 where codes have one sign, of 0 elsewhere, are the worst.
    for sign in (1, -1):
        assert 255 * np.maximum(after * sign, 0).sum(axis=-1).max() <= 32767
        # A lane loses just its excess, and no code changes its sign.
        sums = np.maximum(before * sign, 0).sum(axis=-1)
        np.testing.assert_array_equal(np.maximum(after * sign, 0).sum(axis=-1), np.minimum(sums, LIMIT))
    assert (after * before >= 0).all()
    assert (np.abs(after) <= np.abs(before)).all()


def test_a_sum_of_129_does_not_fit() -> None:
    def pair(a: int, b: int) -> np.ndarray:
        return np.array([a, b], np.int8).reshape(1, 2, 1, 1)

    assert sums_fit(pair(127, 1), 1)
    assert not sums_fit(pair(127, 2), 1)
    assert not sums_fit(pair(-127, -2), 1)
    assert sums_fit(pair(-127, 127), 1)


def test_two_words_add_their_pairs() -> None:
    codes = np.array([100, 20, 0, 0, 5, 4, 0, 0], np.int8).reshape(1, 8, 1, 1)
    assert fitting_words(codes) == 1
    assert fitting_words(codes - np.array([0, 0, 0, 0, 1, 0, 0, 0], np.int8).reshape(1, 8, 1, 1)) == 4


def test_a_kernel_row_ends_alone() -> None:
    codes = np.full((1, 1, 3, 1), 127, np.int8)
    assert sums_fit(codes, 1)
    assert not sums_fit(codes.reshape(1, 1, 1, 3), 1)


def test_what_is_taken_off_is_what_was_rounded_up() -> None:
    exact = np.array([64.6, 64.4, 0, 0], np.float32).reshape(1, 4, 1, 1)
    codes = np.rint(exact).astype(np.int8)
    np.testing.assert_array_equal(fit_sums(codes, exact, 1).ravel(), [64, 64, 0, 0])


@pytest.mark.parametrize("bits", SUM_WORDS)
@pytest.mark.parametrize("shape", [(24, 96, 1, 1), (32, 16, 3, 3)])
def test_scales_do_no_worse_than_either_end(bits: int, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(bits).standard_normal(shape).astype(np.float32)
    full = weight_scales(weight, bits, name="w")
    chosen = sum_scales(weight, full, bits)
    assert (chosen >= full).all()

    def error(scale: np.ndarray) -> np.ndarray:
        codes = round_weights(weight, scale, bits)
        fitted = fit_sums(codes, weight / scale[:, None, None, None], SUM_WORDS[bits])
        return ((fitted * scale[:, None, None, None] - weight) ** 2).reshape(len(weight), -1).sum(axis=1)

    together = lanes(weight, SUM_WORDS[bits])
    sums = np.maximum(np.maximum(together, 0).sum(axis=-1), np.maximum(-together, 0).sum(axis=-1))
    needed = np.maximum(full, sums.max(axis=1, initial=0) / LIMIT).astype(np.float32)
    # The search counts an excess as taken off evenly, which whole codes do not quite allow.
    assert error(chosen).sum() <= 1.01 * min(error(full).sum(), error(needed).sum())
    assert error(chosen).sum() < 0.5 * error(2 * full).sum()
