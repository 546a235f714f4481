"""Gradients by weights against differences of ONNX Runtime's losses, and the steps and ranges made of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from frontend_networks import network, weights
from small_networks import kernel, node

from tvm_mpq.dataset.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx
from tvm_mpq.loss import get_loss
from tvm_mpq.quantization.covariance import InputStatistics
from tvm_mpq.quantization.loss_step import loss_step
from tvm_mpq.quantization.ranges import least_loss_range
from tvm_mpq.sensitivity.gradients import GradientFunction
from tvm_mpq.sensitivity.loss_ranges import GradientHistogram
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.sensitivity.recorded import recorded
from tvm_mpq.sensitivity.weight_gradients import WeightGradient, weight_gradients
from tvm_mpq.target import host_target

SAMPLES = 5
CONSTANTS = {"stem": ("w1", "b1"), "dw": ("w2", "b2"), "rows": ("w3", "b3"), "logits": ("w4", "b4")}
LOSS = relax_loss("cross-entropy")


class Samples:
    """Five images, which batches of two do not divide."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.arrays = {"x": rng.standard_normal((SAMPLES, 3, 7, 7)).astype(np.float32)}
        self.labels = np.array([0, 4, 2, 2, 1])

    size = SAMPLES

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in self.arrays.items()}

    def digest(self, index: int) -> bytes:
        return bytes([index])


def constants() -> dict[str, np.ndarray]:
    return {
        "w1": kernel(8, 3, 3, 3, 1),
        "b1": weights(8, seed=2, scale=0.3),
        "w2": kernel(8, 1, 3, 3, 3),
        "b2": weights(8, seed=4, scale=0.3),
        "w3": weights(49, 6, seed=5, scale=0.2),
        "b3": weights(6, seed=6, scale=0.3),
        "w4": weights(48, 5, seed=7, scale=0.3),
        "b4": weights(5, seed=8, scale=0.3),
    }


def model(values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Convolutions with and without an activation, a matrix multiplication of rows, and one of vectors."""
    nodes = [
        node("Conv", "x w1 b1", "stem", pads=[1, 1, 1, 1]),
        node("Clip", "stem zero one", "cut"),
        node("Conv", "cut w2 b2", "dw", group=8, pads=[1, 1, 1, 1]),
        node("Reshape", "dw planes", "flat"),
        node("MatMul", "flat w3", "rows"),
        node("Add", "rows b3", "shifted"),
        node("Relu", "shifted", "rows_r"),
        node("Flatten", "rows_r", "vector"),
        node("Gemm", "vector w4 b4", "logits"),
    ]
    others = {"zero": np.float32(0), "one": np.float32(0.5), "planes": np.array([2, 8, 49])}
    return network(nodes, {"x": [2, 3, 7, 7]}, ["logits"], {**values, **others})


def mean_loss(values: dict[str, np.ndarray], samples: Samples) -> float:
    session = onnxruntime.InferenceSession(model(values).SerializeToString())
    x = samples.arrays["x"]
    outputs = [session.run(None, {"x": x[[i, i]]})[0][:1] for i in range(SAMPLES)]
    return float(get_loss("cross-entropy").per_sample([np.concatenate(outputs)], samples.labels).mean())


@pytest.fixture(scope="module")
def gradients() -> dict[str, WeightGradient]:
    return weight_gradients(
        import_onnx(model(constants())), LOSS, Dataset(Samples()), host_target(), list(CONSTANTS)
    )


def all_samples(of_halves: np.ndarray) -> np.ndarray:
    """The mean of all five samples from those of the three even and the two odd ones."""
    return (3 * of_halves[0] + 2 * of_halves[1]) / 5


@pytest.mark.parametrize("name", CONSTANTS)
def test_gradients_are_the_derivatives_by_weights_and_biases(
    gradients: dict[str, WeightGradient], name: str
) -> None:
    samples, step = Samples(), 2e-4
    weight, bias = CONSTANTS[name]
    w = constants()[weight]
    products = all_samples(gradients[name].products)
    by_weights = products[0].T if w.ndim == 2 else products.reshape(w.shape)
    for constant, found in ((weight, by_weights), (bias, all_samples(gradients[name].sums))):
        direction = np.random.default_rng(1).standard_normal(found.shape).astype(np.float32)
        up, down = (
            mean_loss({**constants(), constant: constants()[constant] + sign * step * direction}, samples)
            for sign in (1, -1)
        )
        assert (found * direction).sum() == pytest.approx((up - down) / (2 * step), rel=2e-2)


def test_squares_are_those_of_the_gradients_where_the_activation_is_not_saturated(
    gradients: dict[str, WeightGradient],
) -> None:
    samples = Samples()
    mod = import_onnx(model(constants()))
    function = GradientFunction(mod, LOSS, host_target(), ["stem", "dw"], threads=1)
    stem = model(constants())
    stem.graph.output[0].name = "stem"
    before = onnxruntime.InferenceSession(stem.SerializeToString())
    total = {"stem": np.zeros(8), "dw": np.zeros(8)}
    for i in range(SAMPLES):
        x = samples.arrays["x"][[i, i]]
        _, each = function({"x": x, "labels": samples.labels[[i, i]]})
        z = before.run(None, {"x": x})[0][0]
        g = each["stem:output"][0].astype(np.float64) * ((z > 0) & (z < 0.5))
        total["stem"] += (g**2).sum(axis=(1, 2)) / SAMPLES
        total["dw"] += (each["dw:output"][0].astype(np.float64) ** 2).sum(axis=(1, 2)) / SAMPLES
    for name, expected in total.items():
        np.testing.assert_allclose(gradients[name].squares[0], expected, rtol=1e-4)


def test_drawn_labels_give_the_fisher_information_of_what_the_network_predicts() -> None:
    runs = 400
    data = Dataset(Samples(), np.tile(np.arange(SAMPLES), runs))
    found = [
        arrays["g"]
        for arrays in recorded(
            import_onnx(model(constants())),
            LOSS,
            data,
            host_target(),
            ["logits"],
            lambda builder, operator: {"g": operator.gradient},
            drawn=True,
        )
    ]
    g = np.concatenate(found)
    assert g.shape == (SAMPLES * runs, 5)
    session = onnxruntime.InferenceSession(model(constants()).SerializeToString())
    logits = np.concatenate(
        [session.run(None, {"x": Samples().arrays["x"][[i, i]]})[0][:1] for i in range(SAMPLES)]
    ).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # The gradient by the logits is p − (1 of the label): of mean 0 and variance p (1 − p).
    variance = (p * (1 - p)).mean(axis=0)
    np.testing.assert_allclose((g.astype(np.float64) ** 2).mean(axis=0), variance, rtol=0.1)
    assert (np.abs(g.mean(axis=0)) < 4 * np.sqrt(variance / SAMPLES / runs)).all()


def test_labels_that_are_missing_and_too_few_samples_are_an_error() -> None:
    mod = import_onnx(model(constants()))
    with pytest.raises(MpqError, match="at least 2 samples"):
        weight_gradients(mod, LOSS, Dataset(Samples()).take(1), host_target(), ["stem"])
    samples = Samples()
    samples.labels = None
    with pytest.raises(MpqError, match="needs labels"):
        weight_gradients(mod, LOSS, Dataset(samples), host_target(), ["stem"])


def test_a_step_minimises_its_quadratic_where_halves_agree_and_is_none_where_they_contradict() -> None:
    rng = np.random.default_rng(0)
    groups, rows, k = 2, 3, 4
    x = rng.normal(1.0, 1.0, (groups, k, 500))
    statistics = InputStatistics(
        500, x.mean(axis=2), x @ x.transpose(0, 2, 1) / 500, x.mean(axis=2), x @ x.transpose(0, 2, 1) / 500
    )
    gradient, sums = rng.normal(size=(groups, rows, k)), rng.normal(size=groups * rows)
    squares = rng.uniform(1, 2, (2, groups * rows))
    step = loss_step(np.stack([gradient] * 2), np.stack([sums] * 2), squares, statistics)
    assert step.shared == pytest.approx((1.0, 1.0))
    mean = statistics.mean
    centred = gradient - sums.reshape(groups, rows, 1) * mean[:, None, :]
    covariance = statistics.second - mean[:, :, None] * mean[:, None, :]
    damped = covariance + 0.03 * np.trace(covariance, axis1=1, axis2=2)[:, None, None] / k * np.eye(k)
    both = squares.sum(axis=0)
    curvature = (both + 0.1 * both.mean()).reshape(groups, rows)

    def change(delta: np.ndarray) -> float:
        quadratic = np.einsum("grk,gkl,grl,gr->", delta, damped, delta, curvature)
        return float((centred * delta).sum() + quadratic / 2)

    least = change(step.weights)
    assert least < 0
    for _ in range(20):
        assert change(step.weights + 0.01 * rng.normal(size=step.weights.shape)) > least
    # The bias takes up what the step adds to the mean of the output, and has a step of its own.
    moved = np.einsum("grk,gk->gr", step.weights, mean).reshape(-1)
    np.testing.assert_allclose(step.bias, -moved - sums / curvature.reshape(-1), rtol=1e-10)
    against = loss_step(np.stack([gradient, -gradient]), np.stack([sums, -sums]), squares, statistics)
    assert against.shared == (0.0, 0.0)
    assert not against.weights.any()
    assert not against.bias.any()


def test_a_range_by_the_loss_cuts_what_does_not_matter_and_keeps_what_does() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 2000)).astype(np.float32)
    # A few elements are far out.
    values[:, :3] = 40.0
    for matters in (False, True):
        gradients = rng.normal(size=values.shape).astype(np.float32)
        if not matters:
            gradients[:, :3] = 0.0
        histogram = GradientHistogram(float(values.min()), float(values.max()))
        histogram.update(values[:15], gradients[:15])
        histogram.update(values[15:], gradients[15:])
        low, high = histogram.range()
        assert (high > 35.0) == matters

        def cost(lo: float, hi: float, g: np.ndarray = gradients) -> float:
            scale = (hi - lo) / 255
            zero = np.rint(-lo / scale)
            errors = np.clip(np.rint(values / scale), -zero, 255 - zero) * scale - values
            return float(((g.astype(np.float64) * errors).sum(axis=1) ** 2).mean())

        assert cost(low, high) <= 1.05 * cost(float(values.min()), float(values.max()))


def test_a_tensor_without_a_gradient_keeps_its_range() -> None:
    histogram = GradientHistogram(-1.0, 3.0)
    assert histogram.range() == (-1.0, 3.0)
    histogram.update(np.ones((2, 5), np.float32), np.zeros((2, 5), np.float32))
    assert histogram.range() == (-1.0, 3.0)


def test_the_least_cost_is_found_among_ranges_of_its_own_search() -> None:
    values = np.linspace(-2, 10, 400)
    gradients = np.random.default_rng(3).normal(size=(20, 400)) * (np.abs(values) < 3)
    low, high = least_loss_range(-2.0, 10.0, values, gradients)
    assert -2.0 <= low <= -1.5
    assert 2.5 < high < 5.0
