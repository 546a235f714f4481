"""Weights of 2 to 8 bits, with a scale a channel or groups: what they stand for, and that kernels compute just that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from frontend_networks import network, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret
from kernel_runner import require, target_of
from small_networks import branches, mixed, node, prepare, prepared, tokens

from tvm_mpq.errors import MpqError
from tvm_mpq.precision import Precision
from tvm_mpq.quantization.groups import Grouping, from_reduction_rows, reduction_rows
from tvm_mpq.quantization.rounding import fit_accumulator, round_to_nearest
from tvm_mpq.quantization.weights import QuantizedWeights, largest_code, largest_multiplier
from tvm_mpq.target import load_target
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.pipeline import Pipeline

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))


@given(shape=SHAPES, group=st.integers(1, 160))
@settings(max_examples=150, deadline=None)
def test_groups_are_runs_of_the_reduction_that_restart_at_kernel_rows(shape, group):
    """Against a walk over the reduction, element by element."""
    _, channels, rows, columns = shape
    found, place, count, last_row = [], -1, 0, -1
    for row in range(rows):
        for position in range(columns * channels):
            fits = columns * channels <= group
            restart = position == 0 and (not fits or row % (group // (columns * channels)) == 0)
            if restart or (not fits and count == group):
                place, count = place + 1, 0
            count += 1
            last_row = row
            found.append(place)
    assert last_row == rows - 1
    grouping = Grouping.of(shape, group)
    assert grouping.index().tolist() == found
    assert grouping.count == place + 1
    numbers = np.arange(1, grouping.length + 1)[None]
    split = grouping.split(numbers)[0]
    assert [[int(v) for v in part if v] for part in split] == [
        [i + 1 for i, g in enumerate(found) if g == wanted] for wanted in range(place + 1)
    ]


@given(shape=SHAPES)
@settings(max_examples=30, deadline=None)
def test_the_reductions_order_is_the_packed_weights(shape):
    w = np.arange(np.prod(shape)).reshape(shape)
    k, c, r, s = shape
    rows = reduction_rows(w)
    assert rows[k - 1, ((r - 1) * s + s - 1) * c + c - 1] == w[-1, -1, -1, -1]
    assert (rows[0, : s * c].reshape(s, c) == w[0, :, 0, :].T).all()
    np.testing.assert_array_equal(from_reduction_rows(rows, shape), w)


@given(shape=SHAPES, bits=st.integers(2, 8), group=st.integers(0, 40), seed=st.integers(0, 99))
@settings(max_examples=120, deadline=None)
def test_grouped_codes_fit_8_bits_and_stand_for_the_weights(shape, bits, group, seed):
    rng = np.random.default_rng(seed)
    w = (rng.standard_t(3, shape) * rng.lognormal(0, 2, (shape[0], 1, 1, 1))).astype(np.float32)
    w[rng.random(shape) < 0.2] = 0.0
    found = round_to_nearest(w, bits, group)
    assert np.abs(found.codes).max() <= largest_code(bits)
    assert np.abs(found.int8.astype(int)).max() <= 127
    expected = found.codes.astype(np.float64) * found.element_multiplier * found.scale[:, None, None, None]
    np.testing.assert_allclose(found.real, expected, rtol=1e-6)
    # Zero is a code, so no weight is ever moved further than its own size.
    assert (np.abs(found.real - w) <= np.abs(w) * 1.0001).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_groups_and_bits_lower_the_error(bits):
    rng = np.random.default_rng(1)
    w = (rng.normal(size=(16, 64, 3, 3)) * rng.lognormal(0, 1, (16, 64, 1, 1))).astype(np.float32)

    def error(bits: int, group: int) -> float:
        return float(np.square(round_to_nearest(w, bits, group).real - w).sum())

    assert error(bits, 8) < error(bits, 32) < error(bits, 0) * 0.97
    assert error(bits + 1, 32) < error(bits, 32) * 0.6


def test_the_multipliers_are_as_good_as_any():
    """Against every pair of a fine scale and the multipliers, for one small channel."""
    rng = np.random.default_rng(5)
    w = rng.normal(size=(1, 8, 1, 1)).astype(np.float32)
    w[0, 4:] *= 0.3
    found = float(np.square(round_to_nearest(w, 3, 4).real - w).sum())
    best = np.inf
    groups = w.reshape(2, 4).astype(np.float64)
    multipliers = np.arange(1, largest_multiplier(3) + 1)
    for scale in np.linspace(1e-3, 0.2, 400):
        step = scale * multipliers[:, None, None]
        codes = np.clip(np.rint(groups / step), -3, 3)
        best = min(best, float(np.square(codes * step - groups).sum(axis=2).min(axis=0).sum()))
    assert found <= best * 1.1


def test_weights_that_are_not_what_they_say_are_refused():
    good = round_to_nearest(weights(4, 8, 1, 1), 4, 4)
    changes = (
        {"codes": np.full((4, 8, 1, 1), 8, np.int8)},
        {"codes": good.codes[:, :, 0]},
        {"scale": good.scale[:3]},
        {"scale": -good.scale},
        {"multiplier": None},
        {"multiplier": np.zeros_like(good.multiplier)},
        {"multiplier": np.full_like(good.multiplier, 19)},
        {"group": 8},
    )
    for change in changes:
        with pytest.raises(ValueError, match=r"must be|need"):
            dataclasses.replace(good, **change)


@given(shape=SHAPES, group=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_multipliers_of_kernel_rows_are_those_of_the_elements(shape, group):
    k, c, r, s = shape
    count = Grouping.of(shape, group).count
    multiplier = (np.arange(k * count) % 18 + 1).astype(np.uint8).reshape(k, count)
    found = QuantizedWeights(np.ones(shape, np.int8), np.ones(k, np.float32), 4, multiplier, group)
    rows = np.repeat(found.row_multipliers, group, axis=2)[:, :, : s * c].reshape(k, r, s, c)
    np.testing.assert_array_equal(rows.transpose(0, 3, 1, 2), found.int8)


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 0), (4, 4), (2, 4), (2, 0)])
def test_scales_grow_until_no_sum_leaves_int32(bits, group):
    w = weights(3, 40, 1, 1, scale=1.0)
    w[1] *= 1e-9
    bias = np.array([0.1, 1000.0, -5.0], np.float32)
    chosen = round_to_nearest(w, bits, group)
    found = fit_accumulator(chosen, w, bias, 1e-3)
    assert found.scale[1] > chosen.scale[1]
    for channel in (0, 2):
        np.testing.assert_array_equal(found.int8[channel], chosen.int8[channel])
    largest = 255 * np.abs(found.int8.astype(np.int64)).sum(axis=(1, 2, 3))
    largest += np.abs(np.rint(bias / (1e-3 * found.scale.astype(np.float64)))).astype(np.int64)
    assert (largest < 2**31).all()
    assert fit_accumulator(chosen, w, np.zeros(3, np.float32), 1e-3) is chosen


MIXES = {
    "w4a8": ["w4a8"],
    "bits": ["w2a8", "w3a8", "w5a8", "w6a8", "w7a8", "w8a8"],
    "packed": ["w4g8a8", "w3a8", "w2g16a8", "w4g16a8", "w4a8"],
    "groups": ["w4g32a8", "w2g8a8", "w5g3a8", "w3g1000a8", "w4a8"],
}


@pytest.mark.parametrize(("mix", "instruction"), [*((mix, "avx2") for mix in MIXES), ("bits", "generic")])
@pytest.mark.parametrize("make", [mixed, tokens])
def test_mixed_plans_equal_integer_arithmetic_in_numpy(make, mix, instruction):
    require(instruction)
    network, target = prepared(make), target_of(instruction)
    cycle = {name: MIXES[mix][i % len(MIXES[mix])] for i, name in enumerate(network.names)}
    annotated = network.annotate(network.plan(others=cycle))
    found = network.run(network.lower(annotated, target), network.feeds(), target)
    for ours, exact in zip(found, interpret(annotated, network.feeds()), strict=True):
        np.testing.assert_array_equal(ours, exact, strict=True)
        assert len(np.unique(ours)) > 10


def test_weights_of_somebody_elses_choice_are_what_the_kernel_multiplies_by():
    net = prepare(
        network([node("MatMul", "x w", "y")], {"x": [4, 12]}, ["y"], {"w": weights(12, 6, scale=0.3)})
    )
    plan = net.plan("w4g4a8")
    codes = np.random.default_rng(0).integers(-7, 8, (6, 12, 1, 1)).astype(np.int8)
    scale = np.linspace(0.01, 0.02, 6, dtype=np.float32)
    chosen = QuantizedWeights(codes, scale, 4, np.arange(1, 19, dtype=np.uint8).reshape(6, 3), 4)
    pipeline = dataclasses.replace(net.pipeline(plan), weights={"y": chosen})
    (y,) = net.run(pipeline.lower(pipeline.annotate(net.mod)), net.feeds())
    exact = net.feeds()["x"] @ chosen.real[:, :, 0, 0].T
    assert np.corrcoef(y.ravel(), exact.ravel())[0, 1] > 0.9999
    assert np.abs(y - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("name", "bits", "channels", "message"),
    [
        ("z", 4, 12, "weights are given for 'z', which is no operator with weights"),
        ("y", 3, 12, "the weights given for 'y' have 3 bits, where the plan says w4a8"),
        ("y", 4, 11, r"the weights given for operator y have shape \[6, 11, 1, 1\], .* \[6, 12, 1, 1\]"),
    ],
)
def test_weights_that_do_not_fit_the_plan_are_refused(name, bits, channels, message):
    net = prepare(network([node("MatMul", "x w", "y")], {"x": [4, 12]}, ["y"], {"w": weights(12, 6)}))
    given = {name: round_to_nearest(weights(6, channels, 1, 1), bits)}
    pipeline = Pipeline(net.plan("w4a8"), net.ranges, "avx2", weights=given)
    with pytest.raises(MpqError, match=message):
        pipeline.lower(pipeline.annotate(net.mod))


def test_operators_without_weights_are_executed_as_asked():
    """Their 8-bit kernels are the same whatever the weights' bits, so nothing differs from what was asked."""
    network = prepared(branches)
    found = {}
    for _, function, _ in attr.calls(network.annotate(network.plan("w4g32a8"))):
        record = (attr.text(function, attr.PRECISION), attr.text(function, attr.REASON))
        found[attr.text(function, attr.OPERATOR)] = record
    assert found.pop("y") == ("fp32", "softmax has no integer kernel")
    assert set(found.values()) == {("w4g32a8", "")}


@pytest.mark.parametrize(
    ("precision", "supported"),
    [("w2a8", True), ("w4g32a8", True), ("w7g5a8", True), ("w8g32a8", False), ("w4a16", False)],
)
def test_targets_support_groups_of_any_size(precision, supported):
    for name in ("host", "x86-64-v2", "cascadelake"):
        assert load_target(name).supports(Precision.parse(precision)) is supported
