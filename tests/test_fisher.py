"""The moments of gradients by operators' outputs: against differences by biases, and against the gradients."""

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
from tvm_mpq.quantization.weights import QuantizedWeights, quantize_weights
from tvm_mpq.sensitivity.fisher import OutputGradients, output_gradients
from tvm_mpq.sensitivity.gradients import GradientFunction
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.target import host_target

SAMPLES = 5
BIASES = {"stem": "b1", "dw": "b2", "rows": "b3", "logits": "b4"}
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
def gradients() -> OutputGradients:
    return OutputGradients(import_onnx(model(constants())), LOSS, host_target(), threads=1)


def test_the_mean_is_the_derivative_by_the_bias(gradients: OutputGradients) -> None:
    samples = Samples()
    found = gradients(Dataset(samples))
    assert list(found) == list(BIASES)
    step = 1e-3
    for name, bias in BIASES.items():
        direction = np.random.default_rng(1).standard_normal(len(found[name].mean)).astype(np.float32)
        up, down = (
            mean_loss({**constants(), bias: constants()[bias] + sign * step * direction}, samples)
            for sign in (1, -1)
        )
        assert (found[name].mean * direction).sum() == pytest.approx((up - down) / (2 * step), rel=2e-2)


def test_the_second_moment_is_that_of_the_gradients_where_the_activation_is_not_saturated(
    gradients: OutputGradients,
) -> None:
    samples = Samples()
    found = gradients(Dataset(samples))
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
        np.testing.assert_allclose(found[name].second, expected, rtol=1e-4)


def test_other_weights_need_no_build_and_give_the_gradients_of_a_network_that_has_them(
    gradients: OutputGradients,
) -> None:
    values, given = constants(), {}
    for name, weight in (("stem", "w1"), ("dw", "w2"), ("rows", "w3")):
        w = values[weight] if values[weight].ndim == 4 else values[weight].T[:, :, None, None]
        given[name] = QuantizedWeights(*quantize_weights(w, 3), 3)
        values[weight] = given[name].real if values[weight].ndim == 4 else given[name].real[:, :, 0, 0].T
    data = Dataset(Samples())
    first, found = gradients(data), gradients(data, given)
    assert len(gradients._built) == 1
    expected = output_gradients(import_onnx(model(values)), LOSS, data, host_target())
    for name in BIASES:
        np.testing.assert_allclose(found[name].second, expected[name].second, rtol=1e-5)
        assert not np.allclose(found[name].second, first[name].second)
    with pytest.raises(MpqError, match="no convolution or matrix multiplication"):
        gradients(data, {"cut": given["stem"]})
    with pytest.raises(MpqError, match="'rows' do not have the shape"):
        gradients(data, {"rows": given["stem"]})


def test_drawn_labels_give_the_fisher_information_of_what_the_network_predicts() -> None:
    function = OutputGradients(import_onnx(model(constants())), LOSS, host_target(), "drawn", threads=1)
    runs = 400
    data = Dataset(Samples(), np.tile(np.arange(SAMPLES), runs))
    found = function(data)["logits"]
    session = onnxruntime.InferenceSession(model(constants()).SerializeToString())
    logits = np.concatenate(
        [session.run(None, {"x": Samples().arrays["x"][[i, i]]})[0][:1] for i in range(SAMPLES)]
    ).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # The gradient by the logits is p − (1 of the label): of mean 0 and variance p (1 − p).
    variance = (p * (1 - p)).mean(axis=0)
    np.testing.assert_allclose(found.second, variance, rtol=0.1)
    assert (np.abs(found.mean) < 4 * np.sqrt(variance / SAMPLES / runs)).all()


def test_labels_that_are_missing_or_cannot_be_drawn_are_an_error() -> None:
    mod = import_onnx(model(constants()))
    with pytest.raises(MpqError, match="can be drawn for the losses cross-entropy and kl, not for 'mse'"):
        OutputGradients(mod, relax_loss("mse"), host_target(), "drawn")
    samples = Samples()
    samples.labels = None
    with pytest.raises(MpqError, match="needs labels"):
        output_gradients(mod, LOSS, Dataset(samples), host_target())
