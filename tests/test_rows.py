"""Softmax, layer norm and products of two activations: canonical forms and float kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from frontend_networks import assert_agrees, kinds, network, run_reference, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run
from onnx import helper
from small_networks import attention, node, prepare

from tvm_mpq.kernels.batched_matmul import batched_matmul
from tvm_mpq.kernels.rows import layer_norm, softmax

EXAMPLES = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
INSTRUCTIONS = pytest.mark.parametrize("instruction", list(TARGETS))
LENGTHS = st.sampled_from([1, 3, 15, 16, 17, 40, 197, 512])


@INSTRUCTIONS
@EXAMPLES
@given(rows=st.sampled_from([1, 2, 7, 90]), length=LENGTHS, seed=st.integers(0, 99))
def test_row_kernels(instruction: str, rows: int, length: int, seed: int) -> None:
    require(instruction)
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, length)) * 5 + rng.choice([-90, 0, 300])).astype(np.float32)
    wide = x.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    result = run(softmax(rows, length), instruction, x)
    np.testing.assert_allclose(result, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-12)
    gamma, beta = rng.standard_normal((2, length)).astype(np.float32)
    result = run(layer_norm(rows, length, 1e-5), instruction, x, gamma, beta)
    centred = wide - wide.mean(axis=1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * gamma + beta
    np.testing.assert_allclose(result, exact, rtol=0, atol=2e-4)


@INSTRUCTIONS
@EXAMPLES
@given(
    batch=st.integers(1, 5),
    rows=st.sampled_from([1, 5, 6, 7, 40]),
    depth=st.sampled_from([1, 15, 64]),
    columns=st.sampled_from([1, 3, 8, 15, 16, 19, 40, 64]),
    lanes=st.sampled_from([4, 8, 16]),
)
def test_batched_matmul(
    instruction: str, batch: int, rows: int, depth: int, columns: int, lanes: int
) -> None:
    require(instruction)
    a, b = weights(batch, rows, depth, seed=1), weights(batch, depth, columns, seed=2)
    result = run(batched_matmul(batch, rows, depth, columns, lanes), instruction, a, b)
    np.testing.assert_allclose(result, a.astype(np.float64) @ b, rtol=0, atol=1e-5)


def spelled_out(square: str, twice: bool) -> onnx.ModelProto:
    """A layer norm as old exporters write it; ``twice``: with two subtractions."""
    nodes = [
        node("ReduceMean", "x", "mean", axes=[-1]),
        node("Sub", "x mean", "d"),
        node("Sub", "x mean", "d2") if twice else None,
        node("Pow", "d two", "s") if square == "Pow" else node("Mul", "d d", "s"),
        node("ReduceMean", "s", "variance", axes=[2]),
        node("Add", "variance tiny", "v"),
        node("Sqrt", "v", "root"),
        node("Div", "d2 root" if twice else "d root", "n"),
        node("Mul", "n gamma", "m"),
        node("Add", "beta m", "y"),
    ]
    constants = {
        "two": np.float32(2),
        "tiny": np.float32(1e-5),
        "gamma": weights(12),
        "beta": weights(12, seed=1),
    }
    kept = [each for each in nodes if each is not None]
    used = {name for each in kept for name in each.input}
    return network(
        kept, {"x": [2, 5, 12]}, ["y"], {name: value for name, value in constants.items() if name in used}
    )


@pytest.mark.parametrize(("square", "twice"), [("Pow", False), ("Mul", False), ("Pow", True)])
def test_layer_norms_spelled_out(square: str, twice: bool) -> None:
    model = spelled_out(square, twice)
    mod = assert_agrees(model, tolerance=1e-5)
    assert kinds(mod) == ["layer_norm"]
    assert_float_kernels_agree(model)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization(bias: bool) -> None:
    nodes = [
        helper.make_node(
            "LayerNormalization", ["x", "g", *(["b"] if bias else [])], ["n"], name="n", epsilon=1e-3
        ),
        node("Mul", "n two", "y"),
    ]
    constants = {"g": weights(12), "two": np.float32(2), **({"b": weights(12, seed=1)} if bias else {})}
    model = network(nodes, {"x": [2, 3, 5, 12]}, ["y"], constants)
    assert kinds(assert_agrees(model)) == ["layer_norm"]
    assert_float_kernels_agree(model)


def test_other_normalizations_are_left_alone() -> None:
    """Not over the last axis; a variance of something else; a scale that is no row."""
    nodes = [helper.make_node("LayerNormalization", ["x", "g"], ["y"], name="n", axis=1)]
    assert kinds(assert_agrees(network(nodes, {"x": [2, 5, 12]}, ["y"], {"g": weights(5, 12)}))) == [
        "layernormalization"
    ]
    model = spelled_out("Pow", False)
    model.graph.node[2].input[0] = "x"
    assert "layer_norm" not in kinds(assert_agrees(model))
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["n"], name="n"),
        node("Mul", "n column", "y"),
    ]
    constants = {"g": weights(12), "column": weights(5, 1)}
    assert kinds(assert_agrees(network(nodes, {"x": [2, 5, 12]}, ["y"], constants))) == ["layer_norm", "mul"]


@pytest.mark.parametrize(
    ("shape", "axis"), [([2, 5, 12], -1), ([2, 7, 3, 4], 1), ([2, 7, 3, 4], 2), ([9], 0)]
)
def test_softmax_along_any_axis(shape: list[int], axis: int) -> None:
    model = network([node("Softmax", "x", "y", axis=axis)], {"x": shape}, ["y"])
    assert kinds(assert_agrees(model)) == ["softmax"]
    assert_float_kernels_agree(model)


def test_attention() -> None:
    """Scores, softmax and their application, with heads that fill no vector."""
    model = attention()
    assert kinds(assert_agrees(model)) == ["permute_dims", "batch_matmul", "softmax", "batch_matmul"]
    assert_float_kernels_agree(model)


def assert_float_kernels_agree(model: onnx.ModelProto) -> None:
    prepared = prepare(model)
    feeds = prepared.feeds()
    (ours,) = prepared.run(prepared.lower(prepared.annotate(prepared.plan("fp32"))), feeds)
    (exact,) = run_reference(model, feeds)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
