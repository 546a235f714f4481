"""Quantization numerics against exact arithmetic (Fraction) and brute force."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvm_mpq.errors import MpqError
from tvm_mpq.quantization.bias import fold_zero_point, quantize_bias, safe_weight_scale
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.histogram import Histogram
from tvm_mpq.quantization.observers import OBSERVERS, make_observer
from tvm_mpq.quantization.ranges import least_squares_range
from tvm_mpq.quantization.requantize import requantize, requantize_multiplier
from tvm_mpq.quantization.weights import largest_code, quantize_weights, round_weights, weight_scales

# A busy machine is not a failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-1e6, 1e6, width=32)
int32 = st.integers(-(2**31), 2**31 - 1)
bits_of_weights = st.integers(2, 8)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    lo, hi = sorted((draw(moderate), draw(moderate)))
    return Grid.from_range(lo, hi, draw(st.integers(2, 8)))


def rounded(value: float) -> float:
    """The nearest float32 of an exact float64, or of a quotient of float32s (rounding twice is harmless)."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def nearest_even(value: float) -> float:
    return value if value in (float("inf"), float("-inf")) else round(Fraction(value))


# Grid.


@given(grids(), float32)
def test_quantize_is_each_step_rounded_once(grid: Grid, x: float) -> None:
    inverse = rounded(1.0 / grid.scale)
    code = nearest_even(rounded(x * inverse)) + grid.zero_point
    assert grid.quantize(np.array([x], np.float32))[0] == min(max(code, 0), grid.maximum)


@given(grids(), st.integers(0, 255))
def test_dequantize_is_exact_up_to_one_rounding_and_quantize_undoes_it(grid: Grid, code: int) -> None:
    assume(code <= grid.maximum)
    q = np.array([code], np.uint8)
    x = grid.dequantize(q)
    assert x.dtype == np.float32
    assert float(x[0]) == rounded((code - grid.zero_point) * grid.scale)
    assert grid.quantize(x)[0] == code


@given(moderate, moderate, st.integers(2, 8), st.floats(0, 1))
def test_a_round_trip_errs_by_at_most_half_a_step_inside_the_range(
    a: float, b: float, bits: int, at: float
) -> None:
    lo, hi = min(a, b, 0.0), max(a, b, 0.0)
    grid = Grid.from_range(min(a, b), max(a, b), bits)
    x = np.array([lo + at * (hi - lo)], np.float32)
    error = abs(float(grid.dequantize(grid.quantize(x))[0]) - float(x[0]))
    # float32 holds the codes' values and x * inverse to 24 bits: 2^8 codes leave 2^-15 of a step.
    assert error <= grid.scale * (0.5 + 2.0**-14)


@given(moderate, moderate)
def test_a_grid_covers_its_range_to_half_a_step_and_holds_zero_exactly(a: float, b: float) -> None:
    grid = Grid.from_range(min(a, b), max(a, b))
    assert grid.dequantize(grid.quantize(np.zeros(1, np.float32)))[0] == 0.0
    assert grid.quantize(np.zeros(1, np.float32))[0] == grid.zero_point
    slack = grid.scale * (0.5 + 2.0**-14)
    assert grid.low - slack <= min(a, b)
    assert grid.high + slack >= max(a, b)
    wanted = max(a, b, 0.0) - min(a, b, 0.0)
    if wanted >= 2.0**-64:
        assert grid.scale * 255 == pytest.approx(wanted, rel=1e-6)


@given(grids(), hnp.arrays(np.float32, 20, elements=float32))
def test_quantize_is_monotonic(grid: Grid, x: np.ndarray) -> None:
    codes = grid.quantize(np.sort(x)).astype(int)
    assert (np.diff(codes) >= 0).all()


def test_halves_go_to_even_and_infinities_saturate() -> None:
    grid = Grid(2.0, 10)
    assert grid.quantize(np.array([1, 3, 5, -1, -3, -5], np.float32)).tolist() == [10, 12, 12, 10, 8, 8]
    ends = np.array([-np.inf, -3e38, 3e38, np.inf], np.float32)
    assert Grid(2.0**-20, 10, bits=4).quantize(ends).tolist() == [0, 0, 15, 15]


@pytest.mark.parametrize("range_", [(0.0, 0.0), (1e-30, 1e-30), (-1e-40, 1e-42)])
def test_a_range_that_is_zero_gets_a_usable_grid(range_: tuple[float, float]) -> None:
    grid = Grid.from_range(*range_)
    assert (grid.scale, grid.zero_point) == (float(np.float32(1 / 255)), 0)


def test_the_widest_range_has_a_finite_scale() -> None:
    grid = Grid.from_range(-3.4e38, 3.4e38)
    assert grid.zero_point in (127, 128)
    assert np.isfinite(grid.inverse_scale)
    assert grid.inverse_scale > 0


@pytest.mark.parametrize(("lo", "hi"), [(1.0, 0.0), (np.nan, 1.0), (0.0, np.inf)])
def test_what_is_no_range_is_refused(lo: float, hi: float) -> None:
    with pytest.raises(ValueError, match="not a range"):
        Grid.from_range(lo, hi)


@pytest.mark.parametrize(
    ("scale", "zero_point", "bits"),
    [
        (0.1, 0, 8),
        (0.0, 0, 8),
        (-1.0, 0, 8),
        (1e-40, 0, 8),
        (np.inf, 0, 8),
        (1.0, 256, 8),
        (1.0, -1, 8),
        (1.0, 16, 4),
        (1.0, 0, 9),
    ],
)
def test_a_grid_no_kernel_can_hold_is_refused(scale: float, zero_point: int, bits: int) -> None:
    with pytest.raises(ValueError, match=r"float32|zero-point|bits"):
        Grid(scale, zero_point, bits)


# Histogram and observers.


@given(st.lists(hnp.arrays(np.float32, st.integers(1, 40), elements=float32), min_size=1, max_size=5))
def test_a_histogram_counts_every_value_near_its_place_whatever_comes_after(parts: list[np.ndarray]) -> None:
    histogram = Histogram(512)
    for part in parts:
        histogram.add(part, float(part.min()), float(part.max()))
    values = np.concatenate(parts).astype(np.float64)
    assert histogram.zeros == (values == 0).sum()
    assert histogram.counts.sum() + histogram.zeros == len(values)
    assert (histogram.low, histogram.high) == (min(values.min(), 0.0), max(values.max(), 0.0))
    # Each value lies in its cell or, by the rounding of one addition, at the start of the next.
    upto = np.cumsum(histogram.counts)
    ends = (histogram.start + np.arange(512) + 1.0) * histogram.width
    nonzero = values[values != 0]
    below = np.array([(nonzero < end).sum() for end in ends])
    before = np.array([(nonzero < end - histogram.width).sum() for end in ends])
    assert (upto <= below).all()
    assert (upto >= before).all()
    span = histogram.high - histogram.low
    assert histogram.width <= max(span / 512 * 4, 2.0**-120)


def test_a_value_that_rounds_past_the_last_cell_is_counted_there() -> None:
    below_one = np.nextafter(np.float32(1), np.float32(0))
    histogram = Histogram(512)
    histogram.add(np.array([-1.0, below_one], np.float32), -1.0, float(below_one))
    assert (histogram.start, histogram.width) == (-256, 2.0**-8)
    assert np.flatnonzero(histogram.counts).tolist() == [0, 511]


def test_growing_keeps_a_value_that_was_rounded_past_its_cell() -> None:
    below_one = np.nextafter(np.float32(1), np.float32(0))
    histogram = Histogram(512)
    histogram.add(np.array([-0.5, below_one], np.float32), -0.5, float(below_one))
    # It went into the cell of 1.0, which the next, exactly full, window has no room for.
    assert histogram.counts[256 - histogram.start] == 1
    histogram.add(np.array([-3.0], np.float32), -3.0, -3.0)
    assert (histogram.start, histogram.width) == (-384, 2.0**-7)
    assert np.flatnonzero(histogram.counts).tolist() == [0, 320, 511]


def fed(name: str, values: np.ndarray, batches: int = 4, **options: float) -> tuple[float, float]:
    observer = make_observer(name, tensor="t", **options)
    for part in np.array_split(values, batches):
        observer.update(part)
    return observer.range()


@pytest.mark.parametrize("name", OBSERVERS)
@given(values=hnp.arrays(np.float32, st.integers(1, 60), elements=moderate))
def test_a_range_lies_inside_the_values_own_and_holds_zero(name: str, values: np.ndarray) -> None:
    lo, hi = fed(name, values, 1)
    assert min(float(values.min()), 0.0) <= lo <= 0.0 <= hi <= max(float(values.max()), 0.0)


def heavy_tailed(seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.standard_t(3, 200_000).astype(np.float32)
    values[::1000] *= 8
    return values.reshape(4, 50, -1)


def test_minmax_is_exact() -> None:
    values = heavy_tailed()
    assert fed("minmax", values) == (float(values.min()), float(values.max()))
    assert fed("minmax", np.array([3.0, 5.0], np.float32), 1) == (0.0, 5.0)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_is_numpys_to_one_cell(percentile: float) -> None:
    values = heavy_tailed()
    lo, hi = fed("percentile", values, percentile=percentile)
    want = np.percentile(values, [(100 - percentile) / 2, (100 + percentile) / 2])
    cell = 2.0 * (float(values.max()) - float(values.min())) / 2048 * 2
    assert (lo, hi) == pytest.approx(want, abs=cell)
    assert fed("percentile", values, percentile=100.0) == fed("minmax", values)


def test_percentile_counts_the_zeros_of_relu() -> None:
    values = np.concatenate([np.zeros(9_900), np.linspace(1, 100, 100)]).astype(np.float32)
    lo, hi = fed("percentile", np.random.default_rng(0).permutation(values), percentile=99.0)
    assert lo == 0.0
    assert hi == pytest.approx(50.5, abs=1.0)


def grid_error(values: np.ndarray, lo: float, hi: float) -> float:
    grid = Grid.from_range(lo, hi)
    return float(((grid.dequantize(grid.quantize(values)).astype(np.float64) - values) ** 2).sum())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sides", ["both", "positive", "negative"])
def test_mse_is_within_a_few_percent_of_the_best_of_a_brute_force(seed: int, sides: str) -> None:
    generator = np.random.default_rng(seed)
    cut = {"both": (-np.inf, np.inf), "positive": (0, np.inf), "negative": (-np.inf, 0)}[sides]
    bulk = np.clip(generator.normal(0, 1, 8_000), *cut).astype(np.float32)
    outliers = np.clip([*generator.uniform(15, 30, 6), *generator.uniform(-30, -15, 6)], *cut)
    outliers = outliers.astype(np.float32)
    observer = make_observer("mse")
    observer.update(outliers)
    repeats = 500
    for _ in range(repeats):
        observer.update(bulk)

    def error(lo: float, hi: float) -> float:
        return repeats * grid_error(bulk, lo, hi) + grid_error(outliers, lo, hi)

    low, high = min(float(outliers.min()), 0.0), max(float(outliers.max()), 0.0)
    ratios = np.geomspace(1 / 16, 1, 32)
    lows = low * ratios if low < 0 else [0.0]
    highs = high * ratios if high > 0 else [0.0]
    found = error(*observer.range())
    assert found <= min(error(lo, hi) for lo in lows for hi in highs) * 1.02
    assert found < error(low, high) / 1.5


def test_mse_keeps_what_a_clip_left() -> None:
    generator = np.random.default_rng(0)
    values = np.clip(generator.normal(3, 4, 50_000), 0, 6).astype(np.float32)
    lo, hi = fed("mse", values)
    assert lo == 0.0
    assert hi == pytest.approx(6.0, abs=6 / 255 / 4)


def test_entropy_keeps_what_a_clip_left() -> None:
    generator = np.random.default_rng(0)
    values = np.where(generator.random(50_000) < 0.5, 6.0, generator.uniform(0, 6, 50_000)).astype(np.float32)
    assert fed("entropy", values) == pytest.approx((0.0, 6.0))


def test_entropy_cuts_a_lone_outlier_but_not_a_uniform_tensor() -> None:
    generator = np.random.default_rng(0)
    normal = generator.normal(0, 1, 200_000).astype(np.float32)
    with_outlier = np.append(normal, np.float32(60.0))
    lo, hi = fed("entropy", with_outlier)
    assert 2.5 < hi < 20
    assert -6 < lo < -2.5
    uniform = generator.uniform(-1, 3, 200_000).astype(np.float32)
    lo, hi = fed("entropy", uniform)
    assert (lo, hi) == pytest.approx((-1, 3), rel=0.05)


def test_entropy_has_less_divergence_than_minmax_and_mse_on_its_own_measure() -> None:
    values = heavy_tailed()
    lo, hi = fed("entropy", values)
    low, high = fed("minmax", values)
    kept = np.mean((values >= lo) & (values <= hi))
    assert kept > 0.97
    assert (hi - lo) < (high - low) / 2


@pytest.mark.parametrize("name", OBSERVERS)
def test_order_and_batching_do_not_matter_much(name: str) -> None:
    values = heavy_tailed().reshape(-1)
    one = fed(name, values, 1)
    many = fed(name, np.sort(values), 13)
    assert many == pytest.approx(one, rel=0.03)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_observer_names_the_tensor_that_is_not_finite(name: str, value: float) -> None:
    observer = make_observer(name, tensor="conv_7")
    observer.update(np.ones(3, np.float32))
    with pytest.raises(MpqError, match="'conv_7' holds NaN or infinity"):
        observer.update(np.array([0.0, value], np.float32))
    assert observer.range() == (0.0, 1.0) or name in ("percentile", "mse", "entropy")


@pytest.mark.parametrize("name", OBSERVERS)
def test_zeros_and_nothing(name: str) -> None:
    observer = make_observer(name, tensor="idle")
    with pytest.raises(MpqError, match="'idle' was never observed"):
        observer.range()
    observer.update(np.empty((0, 3), np.float32))
    observer.update(np.zeros((2, 3), np.float32))
    assert observer.range() == (0.0, 0.0)


def test_unknown_observers_and_options_are_refused() -> None:
    with pytest.raises(MpqError, match="unknown observer 'max': use minmax, percentile, mse, entropy"):
        make_observer("max")
    with pytest.raises(MpqError, match="observer 'minmax' has no option like 'percentile'"):
        make_observer("minmax", percentile=99.0)
    with pytest.raises(MpqError, match=r"50 to 100, not 0\.99"):
        make_observer("percentile", percentile=0.99)
    with pytest.raises(MpqError, match="at least 512"):
        make_observer("mse", bins=10)


def test_a_histogram_with_only_zeros_has_no_range() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(5, np.float32), 0.0, 0.0)
    assert least_squares_range(histogram) == (0.0, 0.0)


# Weights.


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=moderate),
    bits_of_weights,
)
def test_weights_are_the_nearest_codes_of_a_scale_a_channel(w: np.ndarray, bits: int) -> None:
    codes, scale = quantize_weights(w, bits)
    limit = largest_code(bits)
    assert codes.dtype == np.int8
    assert scale.dtype == np.float32
    assert (scale > 0).all()
    assert np.abs(codes.astype(int)).max() <= limit
    for row, row_codes, step in zip(w.tolist(), codes.tolist(), scale.tolist(), strict=True):
        for value, code in zip(row, row_codes, strict=True):
            exact = Fraction(value) / Fraction(step)
            # The scale is rounded to float32, so the largest weight may lie 2^-24 of itself beyond its code.
            assert abs(exact - code) <= Fraction(1, 2) + Fraction(1, 10**12)


@given(hnp.arrays(np.float32, (3, 8), elements=st.floats(-1, 1, width=32)), bits_of_weights)
def test_the_sign_of_weights_does_not_matter(w: np.ndarray, bits: int) -> None:
    codes, scale = quantize_weights(w, bits)
    flipped, same = quantize_weights(-w, bits)
    np.testing.assert_array_equal(flipped, -codes)
    np.testing.assert_array_equal(same, scale)


def test_the_channel_axis_may_be_any() -> None:
    w = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    codes, scale = quantize_weights(w, axis=1)
    moved, same = quantize_weights(np.moveaxis(w, 1, 0))
    np.testing.assert_array_equal(np.moveaxis(codes, 1, 0), moved)
    np.testing.assert_array_equal(scale, same)
    assert scale.shape == (4,)


@pytest.mark.parametrize("clipping", ["max", "mse"])
def test_a_zero_channel_has_zero_codes_and_a_sensible_scale(clipping: str) -> None:
    w = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    w[1], w[3] = 0.0, 1e-40
    codes, scale = quantize_weights(w, clipping=clipping)  # type: ignore[arg-type]
    assert not codes[[1, 3]].any()
    assert scale[1] == scale[3]
    assert scale.min() <= scale[1] <= scale.max() * 1.0001
    _, alone = quantize_weights(np.zeros((2, 3), np.float32), clipping=clipping)  # type: ignore[arg-type]
    assert alone == pytest.approx(1 / 127)


def squared_error(w: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    back = round_weights(w, scale, bits) * scale.astype(np.float64)[:, None]
    return np.asarray(((back - w) ** 2).sum(axis=1))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_mse_clipping_is_near_the_best_scale_and_never_worse_than_none(bits: int) -> None:
    w = np.random.default_rng(bits).laplace(size=(6, 300)).astype(np.float32)
    plain, clipped = weight_scales(w, bits), weight_scales(w, bits, clipping="mse")
    brute = np.min(
        [squared_error(w, (plain * f).astype(np.float32), bits) for f in np.linspace(0.05, 1, 300)], axis=0
    )
    error = squared_error(w, clipped, bits)
    assert (error <= squared_error(w, plain, bits) * (1 + 1e-6)).all()
    assert (error <= brute * 1.05).all()
    if bits <= 4:
        assert (error < squared_error(w, plain, bits) * 0.9).all()


def test_weights_that_are_not_finite_are_named() -> None:
    w = np.zeros((2, 3), np.float32)
    w[1, 2] = np.inf
    with pytest.raises(MpqError, match=r"weights of 'conv_1' hold NaN or infinity at \[1, 2\]"):
        quantize_weights(w, name="weights of 'conv_1'")


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_a_weight_cannot_have(bits: int) -> None:
    with pytest.raises(ValueError, match="2 to 8 bits"):
        quantize_weights(np.ones((1, 1), np.float32), bits)


# Bias.

scales = st.floats(2.0**-30, 2.0**10, width=32)


@given(st.floats(-100, 100, width=32), scales, scales)
def test_bias_is_the_nearest_integer_or_refused(bias: float, in_scale: float, w_scale: float) -> None:
    exact = Fraction(bias) / (Fraction(in_scale) * Fraction(w_scale))
    b, w = np.array([bias], np.float32), np.array([w_scale], np.float32)
    if abs(exact) > 2**31 + 1:
        with pytest.raises(ValueError, match="does not fit int32"):
            quantize_bias(b, in_scale, w)
    elif abs(exact) < 2**31 - 2:
        got = quantize_bias(b, in_scale, w)
        assert got.dtype == np.int32
        assert abs(int(got[0]) - exact) <= Fraction(1, 2) + Fraction(1, 10**5)


@given(st.data(), st.integers(1, 200_000), scales)
def test_a_safe_scale_keeps_the_worst_accumulator_inside_int32(
    data: st.DataObject, reduction: int, in_scale: float
) -> None:
    largest, bias = data.draw(st.floats(0, 1e3, width=32)), data.draw(st.floats(-1e6, 1e6, width=32))
    # The worst case: every weight at the largest magnitude, every input at 255.
    w = np.full((1, 1), largest, np.float32)
    before = weight_scales(w)
    after = safe_weight_scale(before, np.array([bias], np.float32), in_scale, reduction)
    assert after.dtype == np.float32
    assert after[0] >= before[0]
    code = int(round_weights(w, after)[0, 0])
    folded = int(quantize_bias(np.array([bias], np.float32), in_scale, after)[0])
    assert 255 * code * reduction + abs(folded) < 2**31
    if 255 * 127 * reduction + abs(bias) / (in_scale * float(before[0])) < 2**31 - 2:
        assert after[0] == before[0]


def test_a_scale_enlarged_by_a_hair_is_safe_after_rounding_too() -> None:
    """Codes stay at 127 and the scale's own rounding to float32 is worth 128 steps of the accumulator."""
    generator = np.random.default_rng(0)
    before = generator.uniform(1.0, 1.2, 20_000).astype(np.float32)
    bias = before * (2.0**31 * generator.uniform(1.0035, 1.00394, 20_000) - 255 * 127)
    after = safe_weight_scale(before, bias, 1.0, 1)
    codes = round_weights(before[:, None] * 127.0, after)[:, 0]
    worst = 255 * codes.astype(np.int64) + np.abs(quantize_bias(bias, 1.0, after).astype(np.int64))
    assert worst.max() < 2**31
    assert worst.max() > 2**31 - 1000


def test_a_reduction_that_no_scale_helps_and_a_bias_that_is_no_number_are_refused() -> None:
    one = np.ones(1, np.float32)
    with pytest.raises(MpqError, match="sums 20000000 products"):
        safe_weight_scale(one, one, 1.0, 20_000_000)
    with pytest.raises(MpqError, match="bias holds NaN"):
        safe_weight_scale(one, one * np.nan, 1.0, 10)


@given(st.integers(0, 255), st.data())
def test_a_folded_zero_point_gives_the_same_sums(zero_point: int, data: st.DataObject) -> None:
    codes = data.draw(hnp.arrays(np.int8, (3, 2, 4), elements=st.integers(-127, 127)))
    q = data.draw(hnp.arrays(np.uint8, (2, 4)))
    bias = data.draw(hnp.arrays(np.int32, 3, elements=st.integers(-(2**20), 2**20)))
    direct = ((q.astype(int) - zero_point) * codes).sum(axis=(1, 2)) + bias
    folded = (q.astype(int) * codes).sum(axis=(1, 2)) + fold_zero_point(bias, codes, zero_point)
    np.testing.assert_array_equal(direct, folded)


# Requantization.


@st.composite
def clips(draw: st.DrawFn) -> tuple[int, int]:
    lo, hi = sorted((draw(st.integers(0, 255)), draw(st.integers(0, 255))))
    return lo, hi


def model(acc: int, multiplier: float, zero_point: int, lo: int, hi: int) -> int:
    """The definition in exact arithmetic, each float32 operation rounded once."""
    y = rounded(rounded(float(acc)) * multiplier)
    y = min(max(y, float(lo - zero_point)), float(hi - zero_point))
    return round(Fraction(y)) + zero_point


@given(int32, st.floats(2.0**-40, 2.0**120, width=32), st.integers(0, 255), clips())
def test_requantize_is_its_definition(
    acc: int, multiplier: float, zero_point: int, clip: tuple[int, int]
) -> None:
    got = requantize(np.array([acc], np.int32), np.float32(multiplier), zero_point, *clip)
    assert got.dtype == np.uint8
    assert got[0] == model(acc, multiplier, zero_point, *clip)


@given(st.integers(-300, 300), st.integers(0, 255))
def test_requantize_rounds_halves_to_even(half: int, zero_point: int) -> None:
    want = min(max(round(Fraction(half, 2)) + zero_point, 0), 255)
    assert requantize(np.array([half], np.int32), np.float32(0.5), zero_point)[0] == want


@given(
    hnp.arrays(np.int32, 30, elements=int32), st.floats(2.0**-30, 1.0, width=32), st.integers(0, 255), clips()
)
def test_requantize_is_monotonic_inside_the_clip_and_keeps_zero(
    acc: np.ndarray, multiplier: float, zero_point: int, clip: tuple[int, int]
) -> None:
    codes = requantize(np.sort(acc), np.float32(multiplier), zero_point, *clip).astype(int)
    assert (np.diff(codes) >= 0).all()
    assert clip[0] <= codes.min()
    assert codes.max() <= clip[1]
    zero = requantize(np.zeros(1, np.int32), np.float32(multiplier), zero_point, *clip)[0]
    assert zero == min(max(zero_point, clip[0]), clip[1])


def test_requantize_takes_a_multiplier_a_channel_and_refuses_other_types() -> None:
    acc = np.array([[100, 100], [-100, 7]], np.int32)
    got = requantize(acc, np.array([1.0, 0.1], np.float32), 20)
    assert got.tolist() == [[120, 30], [0, 21]]
    with pytest.raises(TypeError, match="int64"):
        requantize(acc.astype(np.int64), np.float32(1), 0)
    with pytest.raises(TypeError, match="float64"):
        requantize(acc, np.array([1.0, 0.1]), 0)
    with pytest.raises(ValueError, match="range of codes"):
        requantize(acc, np.float32(1), 0, 5, 4)


@pytest.mark.parametrize("seed", range(3))
def test_an_integer_matrix_product_is_the_float_one_to_a_step_and_a_half(seed: int) -> None:
    """The pieces together: quantized inputs, weights and bias, one int32 product, requantized."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0.5, 1.0, (64, 96)).astype(np.float32)
    w = generator.normal(0.0, 0.1, (32, 96)).astype(np.float32)
    bias = generator.normal(0.0, 0.5, 32).astype(np.float32)
    in_grid = Grid.from_range(float(x.min()), float(x.max()))
    q = in_grid.quantize(x)
    scale = safe_weight_scale(weight_scales(w), bias, in_grid.scale, 96)
    codes = round_weights(w, scale)
    offsets = fold_zero_point(quantize_bias(bias, in_grid.scale, scale), codes, in_grid.zero_point)
    acc = q.astype(np.int32) @ codes.astype(np.int32).T + offsets
    # What the integers stand for, in float64: only the output's rounding is left to differ.
    exact = in_grid.dequantize(q).astype(np.float64) @ (codes * scale.astype(np.float64)[:, None]).T + bias
    out_grid = Grid.from_range(float(exact.min()), float(exact.max()))
    got = out_grid.dequantize(
        requantize(acc, requantize_multiplier(in_grid.scale, scale, out_grid.scale), out_grid.zero_point)
    )
    assert np.abs(got - exact).max() <= out_grid.scale * 0.501
    true = x.astype(np.float64) @ w.T + bias
    assert np.sqrt(np.mean((got - true) ** 2)) < 0.02 * true.std()
