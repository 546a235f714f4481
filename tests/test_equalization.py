"""Equalized channels: the same network in fp32, and less noise in 8 bits."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from frontend_networks import run_canonical, run_reference, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import Noise, branches, image_network, kernel, node

from tvm_mpq.calibration import calibrate
from tvm_mpq.dataset.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, W8A8, Precision
from tvm_mpq.quantization.equalization import ChannelStatistics, equalizing_factors
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.sensitivity.equalization import channel_statistics, equalize
from tvm_mpq.target import host_target
from tvm_mpq.transform.equalize_channels import equalizable, equalize_channels


def chain(activation: str, spread: bool = True) -> onnx.ModelProto:
    """A convolution, a depthwise and a grouped one, a pool and a matrix multiplication, on [1, 4, 6, 6].

    With ``spread`` the channels of the first differ by orders of magnitude.
    """
    sizes = np.geomspace(0.05, 4.0, 8).astype(np.float32) if spread else np.ones(8, np.float32)
    first = kernel(8, 4, 3, 3, 1) * sizes[:, None, None, None]
    act = {
        "relu": lambda x, y: [node("Relu", x, y)],
        "relu6": lambda x, y: [node("Clip", f"{x} zero six", y)],
        "none": lambda x, y: [node("Identity", x, y)],
    }[activation]
    nodes = [
        node("Conv", "x w b", "first", pads=[1, 1, 1, 1]),
        *act("first", "first_r"),
        node("Conv", "first_r d b", "dw", group=8, pads=[1, 1, 1, 1]),
        *act("dw", "dw_r"),
        node("Conv", "dw_r g c", "grouped", group=2),
        *act("grouped", "grouped_r"),
        node("GlobalAveragePool", "grouped_r", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat m", "y"),
    ]
    return image_network(
        nodes,
        ["y"],
        w=first,
        b=weights(8, seed=2, scale=0.02),
        d=kernel(8, 1, 3, 3, 3),
        g=kernel(6, 4, 1, 1, 4),
        c=weights(6, seed=5, scale=0.02),
        m=weights(6, 5, seed=6),
        zero=np.float32(0),
        six=np.float32(6),
    )


def samples(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32)
        for spec in io_specs(import_onnx(model))[0]
    }


@pytest.mark.parametrize("activation", ["none", "relu"])
@settings(deadline=None, max_examples=3)
@given(st.integers(0, 2**32 - 1))
def test_any_positive_factors_leave_the_network_as_it_is(activation: str, seed: int) -> None:
    model = chain(activation)
    mod = import_onnx(model)
    rng = np.random.default_rng(seed)
    channels = {"first": 8, "dw": 8, "grouped": 6}
    factors = {name: np.exp(rng.uniform(-3, 3, n)).astype(np.float32) for name, n in channels.items()}
    feeds = samples(model)
    expected = run_reference(model, feeds)
    found = run_canonical(equalize_channels(mod, factors), feeds)
    for value, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-5)


def test_what_can_be_equalized_is_read_by_weights_alone() -> None:
    assert equalizable(import_onnx(chain("relu6"))) == {
        "first": ("dw",),
        "dw": ("grouped",),
        "grouped": ("y",),
    }
    # What an addition reads, or the network gives, has other readers.
    for name, readers in equalizable(import_onnx(branches())).items():
        assert name != "logits"
        assert "residual" not in readers


def test_names_and_factors_that_do_not_fit_are_an_error() -> None:
    mod = import_onnx(chain("relu"))
    with pytest.raises(MpqError, match="'y' cannot be equalized"):
        equalize_channels(mod, {"y": np.ones(5, np.float32)})
    for wrong in (np.ones(7, np.float32), np.zeros(8, np.float32), np.full(8, np.nan, np.float32)):
        with pytest.raises(MpqError, match="one positive factor a channel"):
            equalize_channels(mod, {"first": wrong})


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_equalized_channels_lose_less_in_8_bits_and_nothing_in_fp32(activation: str) -> None:
    mod = import_onnx(chain(activation))
    data = Dataset(Noise(mod, 24))
    factors = equalize(mod, data, host_target())
    assert "first" in factors
    names = [operator.name for operator in operators(mod)]
    kl = get_loss("kl")

    plain = PlanEvaluator(mod, calibrate(mod, data, "minmax", host_target()), data, kl, host_target())
    reference = plain.outputs(PrecisionPlan.uniform(names, FP32))
    equal = equalize_channels(mod, factors)
    equalized = plain.of(equal, calibrate(equal, data, "minmax", host_target()))

    def divergence(evaluator: PlanEvaluator, precision: Precision) -> float:
        outputs = evaluator.outputs(PrecisionPlan.uniform(names, precision))
        return float(evaluator.of_outputs(outputs, reference).losses.mean())

    assert divergence(equalized, FP32) < 1e-8
    assert divergence(equalized, W8A8) < 0.7 * divergence(plain, W8A8)


def test_a_bound_is_never_exceeded_and_nothing_below_it_is_lowered() -> None:
    mod = import_onnx(chain("relu6"))
    data = Dataset(Noise(mod, 12))
    before = channel_statistics(mod, ["first", "dw"], data, host_target())
    for name, factor in equalize(mod, data, host_target()).items():
        if name in before:
            assert (factor >= 1.0).all()
            assert (factor * before[name].largest <= 6.0 * (1 + 1e-6)).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.sampled_from([6.0, math.inf]))
def test_factors_never_make_more_noise_by_their_own_count(seed: int, bits: int, high: float) -> None:
    rng = np.random.default_rng(seed)
    channels = int(rng.integers(1, 9))
    largest = np.minimum(np.exp(rng.normal(0, 2, channels)) * (rng.random(channels) > 0.2), high)
    statistics = ChannelStatistics(largest, (0.3 * largest) ** 2)
    reader = rng.normal(size=(1, channels, 5, 3)).astype(np.float32)
    factors = equalizing_factors(statistics, [reader], bits, high)
    if factors is None:
        return
    assert factors.shape == (channels,)
    assert (factors > 0).all()

    def noise(m: np.ndarray) -> float:
        divided = reader[0] / m[:, None, None]
        step = (m * largest).max() / 255
        steps = np.abs(divided).max(axis=(0, 2)) / (2 ** (bits - 1) - 1)
        return step**2 * (divided**2).sum() + 3 * (steps**2).sum() * (statistics.mean_square * m**2).sum()

    assert noise(factors.astype(np.float64)) < noise(np.ones(channels))
