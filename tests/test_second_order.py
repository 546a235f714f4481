"""Patches against a convolution, moments against their definition, rounding against brute force and against nearest."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_mpq.quantization.covariance import Covariance, InputStatistics, Sampler
from tvm_mpq.quantization.gptq import damped, descend, gptq, output_error
from tvm_mpq.quantization.patches import Window, patches
from tvm_mpq.quantization.rounding import round_to_nearest
from tvm_mpq.quantization.second_order import SecondOrder, bias_change, output_noise, round_second_order
from tvm_mpq.quantization.weights import QuantizedWeights, largest_code

Floats = npt.NDArray[np.float64]

WINDOWS = [
    Window(),
    Window((3, 3), (1, 1), (1, 1, 1, 1)),
    Window((3, 2), (2, 1), (0, 1, 2, 0), (1, 2)),
    Window((3, 3), (2, 2), (1, 0, 1, 1), groups=6),
    Window((2, 2), (1, 1), (0, 0, 0, 0), groups=3),
]


def convolve(x: Floats, w: Floats, window: Window) -> Floats:
    """[N, H, W, C] and [O, C/groups, R, S] → [N, P, Q, O], term by term."""
    top, left, bottom, right = window.padding
    rows, columns = window.outputs(x.shape[1], x.shape[2])
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    out = np.zeros((len(x), rows, columns, len(w)))
    inside, each = w.shape[1], len(w) // window.groups
    for p, q, o in itertools.product(range(rows), range(columns), range(len(w))):
        group = o // each
        for i, j in itertools.product(range(w.shape[2]), range(w.shape[3])):
            row = p * window.stride[0] + i * window.dilation[0]
            column = q * window.stride[1] + j * window.dilation[1]
            part = x[:, row, column, group * inside : (group + 1) * inside]
            out[:, p, q, o] += part @ w[o, :, i, j]
    return out


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("every", "first"), [(1, 0), (2, 1), (50, 7)])
def test_weights_times_patches_are_the_convolution(window: Window, every: int, first: int) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 6, 7, 6))
    w = random.normal(size=(12, 6 // window.groups, *window.kernel))
    full = convolve(x, w, window)
    row, column = (first % min(every, extent) for extent in full.shape[1:3])
    expected = full[:, row::every, column::every].reshape(-1, window.groups, 12 // window.groups)
    found = w.reshape(window.groups, 12 // window.groups, -1) @ patches(x, window, every, first)
    np.testing.assert_allclose(found, expected.transpose(1, 2, 0), atol=1e-12)


def moments(x: Floats, reference: Floats) -> InputStatistics:
    """Of [groups, K, positions]."""
    n, back = x.shape[2], x.transpose(0, 2, 1)
    return InputStatistics(n, x.mean(axis=2), x @ back / n, reference.mean(axis=2), reference @ back / n)


@pytest.mark.parametrize("window", WINDOWS)
def test_covariances_add_up_over_batches(window: Window) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(5, 6, 7, 6)).astype(np.float32)
    reference = x + random.normal(size=x.shape).astype(np.float32)
    total, sample = Covariance(), Sampler(window)
    total.update(sample(x[:2], 0), sample(reference[:2], 0))
    total.update(sample(x[2:], 1), sample(reference[2:], 1))
    found = total.statistics()
    expected = moments(patches(x, window).astype(float), patches(reference, window).astype(float))
    assert found.count == expected.count
    for name in ("mean", "second", "reference_mean", "cross"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_of_large_maps_only_a_grid_of_positions_is_seen() -> None:
    x = np.arange(64.0 * 64.0).reshape(1, 64, 64, 1)
    first, second = (Sampler(Window())(x, batch) for batch in (0, 1))
    assert first.shape == second.shape == (1, 1, 64)
    assert not set(first.ravel()) & set(second.ravel())


def test_nothing_seen_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no inputs"):
        Covariance().statistics()


def correlated(random: np.random.Generator, groups: int, k: int, n: int = 400) -> Floats:
    """Inputs [groups, K, n] with a strong common part and a mean."""
    common = random.normal(size=(groups, 1, n)) * random.uniform(0.5, 2.0, (groups, k, 1))
    return common + 0.4 * random.normal(size=(groups, k, n)) + random.normal(size=(groups, k, 1))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_descent_ends_where_no_single_code_helps_and_beats_gptq_and_nearest(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    x = correlated(random, 2, k)
    second = damped(x @ x.transpose(0, 2, 1) / x.shape[2], 0.01)
    target, step = random.normal(size=(2, 3, k)), np.full((2, 3, k), 0.5)
    nearest = np.clip(np.rint(target / step), -3, 3)
    first = gptq(target, step, 3, second)
    last = descend(first, target, step, 3, second, 50)
    assert (last == np.rint(last)).all()
    assert np.abs(last).max() <= 3
    error = output_error(last, target, step, second)
    assert (error <= output_error(first, target, step, second) + 1e-9).all()
    for column, change in itertools.product(range(k), (-1.0, 1.0)):
        other = last.copy()
        other[:, :, column] = np.clip(other[:, :, column] + change, -3, 3)
        assert (error <= output_error(other, target, step, second) + 1e-9).all()
    # On the way from nearest too: descent has no worse a start than it.
    settled = descend(nearest, target, step, 3, second, 50)
    assert (
        output_error(settled, target, step, second) <= output_error(nearest, target, step, second) + 1e-9
    ).all()


def test_gptq_is_close_to_the_best_codes_there_are() -> None:
    random = np.random.default_rng(3)
    x = correlated(random, 1, 5)
    second = damped(x @ x.transpose(0, 2, 1) / x.shape[2], 0.001)
    target, step = random.normal(size=(1, 40, 5)), np.full((1, 40, 5), 0.7)
    every = np.array(list(itertools.product(range(-3, 4), repeat=5)), float)
    deltas = every[None] * 0.7 - target[0][:, None]
    best = np.einsum("rck,rck->rc", deltas @ second[0], deltas).min(axis=1)
    nearest = np.clip(np.rint(target / step), -3, 3)
    found, plain = (
        output_error(codes, target, step, second)[0].sum()
        for codes in (descend(gptq(target, step, 3, second), target, step, 3, second, 9), nearest)
    )
    assert best.sum() <= found <= 1.6 * best.sum()
    assert plain > 4.0 * best.sum()


def test_gptq_in_blocks_is_gptq_column_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    x = correlated(random, 2, 30)
    second = damped(x @ x.transpose(0, 2, 1) / x.shape[2], 0.01)
    target, step = random.normal(size=(2, 7, 30)), np.full((2, 7, 30), 0.2)
    one = gptq(target, step, 7, second)
    start = np.clip(np.rint(target / step), -7, 7)
    settled = descend(start, target, step, 7, second, 2)
    monkeypatch.setattr("tvm_mpq.quantization.gptq._BLOCK", 8)
    np.testing.assert_array_equal(gptq(target, step, 7, second), one)
    np.testing.assert_array_equal(descend(start, target, step, 7, second, 2), settled)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    second = np.zeros((1, 4, 4))
    second[0, :2, :2] = [[2.0, 1.0], [1.0, 2.0]]
    target = np.array([[[0.4, 1.2, -0.7, 2.6]]])
    codes = gptq(target, np.ones_like(target), 7, damped(second, 0.01))
    assert codes[0, 0, 2:].tolist() == [-1.0, 3.0]


SHAPES = [((8, 12, 1, 1), 1), ((6, 1, 3, 3), 6), ((6, 4, 2, 3), 2)]


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("group", [0, 4])
def test_second_order_beats_nearest_where_inputs_correlate(
    shape: tuple[int, ...], groups: int, group: int
) -> None:
    random = np.random.default_rng(5)
    k = int(np.prod(shape[1:]))
    x = correlated(random, groups, k)
    statistics = moments(x, x)
    w = random.normal(size=shape).astype(np.float32)
    grid = round_to_nearest(w, 4, group)
    found = round_second_order(w, grid, statistics)
    assert found.bits == 4
    assert np.abs(found.codes).max() <= largest_code(4)

    def error(quantized: QuantizedWeights) -> float:
        delta = (quantized.real.astype(np.float64) - w).reshape(groups, -1, k) @ x
        change = bias_change(w, quantized, statistics).reshape(groups, -1, 1)
        return float(((delta + change) ** 2).mean())

    assert error(found) < 0.6 * error(grid)


def test_correction_aims_at_the_output_of_fp32() -> None:
    random = np.random.default_rng(6)
    reference = correlated(random, 1, 10)
    # The quantized network hands over shrunken inputs with noise: better weights are larger.
    x = 0.7 * reference + 0.1 * random.normal(size=reference.shape) + 0.3
    statistics = moments(x, reference)
    w = random.normal(size=(5, 10, 1, 1)).astype(np.float32)
    wanted = w.reshape(1, 5, 10) @ reference
    grid = round_to_nearest(w, 8)

    def error(correct: bool) -> float:
        options = SecondOrder(correct=correct, scales=(1.0, 1.2, 1.45))
        found = round_second_order(w, grid, statistics, options)
        made = found.real.reshape(1, 5, 10) @ x + bias_change(w, found, statistics, True).reshape(1, 5, 1)
        return float(((made - wanted) ** 2).mean())

    assert error(True) < 0.5 * error(False)


def test_the_bias_makes_up_for_the_mean() -> None:
    random = np.random.default_rng(7)
    reference = correlated(random, 3, 9)
    x = reference + 0.5
    w = random.normal(size=(6, 1, 3, 3)).astype(np.float32)
    quantized = round_to_nearest(w, 3)
    made = (quantized.real.reshape(3, 2, 9) @ x).mean(axis=2)
    for correct, inputs in ((False, x), (True, reference)):
        meant = (w.reshape(3, 2, 9) @ inputs).mean(axis=2)
        change = bias_change(w, quantized, moments(x, reference), correct).reshape(3, 2)
        np.testing.assert_allclose(made + change, meant, atol=1e-5)


def test_few_samples_are_not_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    x = correlated(random, 1, 60, 20_000)
    w = random.normal(size=(30, 60, 1, 1)).astype(np.float32)
    grid = round_to_nearest(w, 3)
    few, held_out = moments(x[:, :, :30], x[:, :, :30]), moments(x, x)

    def noise(quantized: QuantizedWeights) -> float:
        return float(output_noise(w, quantized, held_out, SecondOrder(damping=0.0)).sum())

    careful = noise(round_second_order(w, grid, few))
    monkeypatch.setattr("tvm_mpq.quantization.second_order._ENOUGH", 0.0)
    blind = noise(round_second_order(w, grid, few))
    assert careful < noise(grid)
    assert careful < 0.9 * blind


def test_noise_is_the_error_of_the_outputs() -> None:
    random = np.random.default_rng(9)
    x = correlated(random, 3, 9)
    w = random.normal(size=(6, 1, 3, 3)).astype(np.float32)
    quantized = round_to_nearest(w, 3)
    delta = (quantized.real.astype(np.float64) - w).reshape(3, 2, 9) @ x
    expected = delta.var(axis=2).reshape(-1)
    found = output_noise(w, quantized, moments(x, x), SecondOrder(damping=0.0))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert (output_noise(w, quantized, moments(x, x)) > found).all()


def test_rounding_keeps_the_gain() -> None:
    random = np.random.default_rng(10)
    x = correlated(random, 1, 40, 4_000)
    x -= x.mean(axis=2, keepdims=True)
    w = random.normal(size=(20, 40, 1, 1)).astype(np.float32)
    grid, exact = round_to_nearest(w, 2), w.reshape(1, 20, 40) @ x

    def slopes(keep_gain: bool) -> Floats:
        options = SecondOrder(damping=0.0, scales=(0.9, 1.0, 1.1), keep_gain=keep_gain)
        made = round_second_order(w, grid, moments(x, x), options).real.reshape(1, 20, 40) @ x
        return np.asarray((made * exact).sum(axis=2) / (exact**2).sum(axis=2))

    assert slopes(False).mean() < 0.97
    np.testing.assert_allclose(slopes(True), 1.0, atol=1e-5)
