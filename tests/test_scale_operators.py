"""Scaling the output of a network inside its weights: what ONNX Runtime computes, times the factor."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from frontend_networks import run_canonical, run_reference, weights
from small_networks import branches, image_network, kernel, mixed, network, node, tokens

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.transform.scale_operators import is_linear_output, output_operator, scale_operators

FACTOR = 1.75


def convolution(last: list[onnx.NodeProto], output: str, **constants: np.ndarray) -> onnx.ModelProto:
    """``last`` behind a convolution ``c`` on [1, 4, 6, 6] with a bias."""
    nodes = [
        node("Conv", "x w b", "first", pads=[1, 1, 1, 1]),
        node("Relu", "first", "first_r"),
        node("Conv", "first_r p b", "c"),
        *last,
    ]
    return image_network(nodes, [output], b=weights(4, seed=3), **constants)


def matmul(bias: bool) -> onnx.ModelProto:
    last = [
        node("GlobalAveragePool", "c", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat m v" if bias else "flat m", "y"),
    ]
    constants = {"m": weights(4, 5, seed=4)} | ({"v": weights(5, seed=5)} if bias else {})
    return convolution(last, "y", **constants)


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = io_specs(import_onnx(model))[0]
    return {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in inputs}


LINEAR = {
    "matmul with a bias": (matmul(True), "y"),
    "matmul": (matmul(False), "y"),
    "convolution": (convolution([], "c"), "c"),
    "reshape": (convolution([node("Flatten", "c", "y")], "y"), "c"),
    "transpose": (convolution([node("Transpose", "c", "y", perm=[0, 2, 3, 1])], "y"), "c"),
    "depthwise": (
        convolution([node("Conv", "c d b", "y", group=4, pads=[1, 1, 1, 1])], "y", d=kernel(4, 1, 3, 3, 7)),
        "y",
    ),
    "transposed": (
        convolution([node("ConvTranspose", "c t b", "y", strides=[2, 2])], "y", t=kernel(4, 4, 2, 2, 8)),
        "y",
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_the_output_is_a_multiple_of_what_it_was(name: str) -> None:
    model, operator = LINEAR[name]
    mod = import_onnx(model)
    assert output_operator(mod) == operator
    assert is_linear_output(mod)
    given = feeds(model)
    (expected,) = run_reference(model, given)
    scaled = scale_operators(mod, {operator: FACTOR})
    (found,) = run_canonical(scaled, given)
    np.testing.assert_allclose(found, FACTOR * expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert operators(scaled) == operators(mod)
    assert io_specs(scaled) == io_specs(mod)
    (before,) = run_canonical(mod, given)
    np.testing.assert_allclose(before, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("end", ["Softmax", "Sigmoid"])
def test_probabilities_are_those_of_scaled_logits(end: str) -> None:
    attributes = {"axis": 1} if end == "Softmax" else {}
    logits = convolution([node("Flatten", "c", "z")], "z")
    model = convolution([node("Flatten", "c", "z"), node(end, "z", "y", **attributes)], "y")
    mod = import_onnx(model)
    assert output_operator(mod) == "c"
    assert not is_linear_output(mod)
    given = feeds(model)
    z = FACTOR * run_reference(logits, given)[0].astype(np.float64)
    e = np.exp(z - z.max())
    expected = e / e.sum() if end == "Softmax" else 1 / (1 + np.exp(-z))
    (found,) = run_canonical(scale_operators(mod, {"c": FACTOR}), given)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("end", ["Relu", "Tanh", "MaxPool", "Add"])
def test_other_ends_have_no_operator_to_scale(end: str) -> None:
    if end == "MaxPool":
        last = node("MaxPool", "c", "y", kernel_shape=[2, 2])
    elif end == "Add":
        last = node("Add", "c first_r", "y")
    else:
        last = node(end, "c", "y")
    mod = import_onnx(convolution([last], "y"))
    assert output_operator(mod) is None
    assert not is_linear_output(mod)


def test_an_input_that_is_only_moved_has_no_operator_to_scale() -> None:
    model = network([node("Reshape", "x shape", "y")], {"x": [2, 6]}, ["y"], {"shape": np.array([2, 3, 2])})
    assert output_operator(import_onnx(model)) is None


def test_the_first_output_counts() -> None:
    assert output_operator(import_onnx(mixed())) == "logits"
    assert output_operator(import_onnx(tokens())) is None


def test_an_operator_that_others_read_too_is_left_alone() -> None:
    """``branches`` gives its logits out beside their softmax: scaling would change a second output."""
    assert output_operator(import_onnx(branches())) is None
    last = [node("Relu", "c", "r"), node("GlobalAveragePool", "r", "z")]
    nodes = [node("Conv", "x w b", "c", pads=[1, 1, 1, 1]), *last]
    assert output_operator(import_onnx(image_network(nodes, ["c", "z"], b=weights(4, seed=3)))) is None


def test_operators_that_cannot_be_scaled_are_named() -> None:
    mod = import_onnx(convolution([node("GlobalAveragePool", "c", "y")], "y"))
    for name in ("none", "y", "first"):
        with pytest.raises(MpqError, match=f"operator '{name}' cannot be scaled: it has no weights, or an"):
            scale_operators(mod, {name: 2.0})
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(MpqError, match="operator 'c' cannot be scaled by"):
            scale_operators(mod, {"c": factor})


def test_several_factors_multiply_along_the_network() -> None:
    nodes = [node("Conv", "x w", "first", pads=[1, 1, 1, 1]), node("Conv", "first p", "c")]
    model = image_network(nodes, ["c"])
    given = feeds(model)
    (found,) = run_canonical(scale_operators(import_onnx(model), {"first": 2.0, "c": 0.25}), given)
    (expected,) = run_reference(model, given)
    np.testing.assert_allclose(found, expected / 2, rtol=1e-5, atol=1e-6)
