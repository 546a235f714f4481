"""Codes whose pair sums fit int16: always fitting, the nearest such codes, and scales no worse than the obvious two."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_mpq.quantization.pair_sums import LIMIT, fit_pair_sums, pair_scales, pair_sums_fit, pairs
from tvm_mpq.quantization.weights import round_weights, weight_scales

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None, derandomize=True)
@given(shape=SHAPES, seed=st.integers(0, 999))
def test_fitted_codes_cannot_saturate(shape: tuple[int, ...], seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    fitted = fit_pair_sums(codes)
    assert fitted.shape == codes.shape
    assert pair_sums_fit(fitted)
    two = pairs(fitted).astype(np.int64)
    for a, b in itertools.product((0, 255), repeat=2):
        assert np.abs(two @ [a, b]).max() <= 32767
    # Nothing changes where a pair fits, no code changes its sign, and a pair loses just its excess.
    before = pairs(codes).astype(np.int64)
    excess = np.maximum(np.abs(before).sum(axis=-1) - LIMIT, 0) * (np.prod(np.sign(before), axis=-1) > 0)
    np.testing.assert_array_equal(np.abs(before - two).sum(axis=-1), excess)
    assert (two * before >= 0).all()


def test_a_sum_of_129_does_not_fit() -> None:
    assert pair_sums_fit(np.array([127, 1], np.int8).reshape(1, 2, 1, 1))
    assert not pair_sums_fit(np.array([127, 2], np.int8).reshape(1, 2, 1, 1))
    assert not pair_sums_fit(np.array([-127, -2], np.int8).reshape(1, 2, 1, 1))
    assert pair_sums_fit(np.array([-127, 127], np.int8).reshape(1, 2, 1, 1))


def test_a_kernel_row_of_odd_length_ends_alone() -> None:
    codes = np.array([[127, 127], [127, 127], [127, 127]], np.int8).T.reshape(1, 1, 2, 3)
    assert not pair_sums_fit(codes)
    assert pair_sums_fit(codes.reshape(1, 1, 6, 1))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(shape=SHAPES, seed=st.integers(0, 999))
def test_scales_do_no_worse_than_either_end(shape: tuple[int, ...], seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    full = weight_scales(weight, name="w")
    chosen = pair_scales(weight, full)
    assert (chosen >= full).all()

    def error(scale: np.ndarray) -> np.ndarray:
        codes = fit_pair_sums(round_weights(weight, scale))
        return ((codes * scale.reshape(-1, 1, 1, 1) - weight) ** 2).reshape(len(weight), -1).sum(axis=1)

    two = pairs(weight)
    sums = np.maximum(np.maximum(two, 0).sum(axis=-1), np.maximum(-two, 0).sum(axis=-1))
    ends = full, np.maximum(full, sums.max(axis=1, initial=0) / LIMIT).astype(np.float32)
    assert (error(chosen) <= np.minimum(error(ends[0]), error(ends[1])) * (1 + 1e-3) + 1e-9).all()
