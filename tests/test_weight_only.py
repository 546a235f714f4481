"""Float activations with integer weights: kernels and compiled networks against float64, and what they store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_networks import network, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run
from small_networks import node

from tvm_mpq.compiler import compile_model
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.weight_only import BLOCK, WeightOnlyTile
from tvm_mpq.kernels.weight_only_program import weight_only
from tvm_mpq.quantization.rounding import round_to_nearest
from tvm_mpq.quantization.weights import QuantizedWeights, largest_code, largest_multiplier
from tvm_mpq.runtime.session import Session
from tvm_mpq.transform.lower_weight_only import packed_constants

INSTRUCTIONS = pytest.mark.parametrize("instruction", list(TARGETS))
EXAMPLES = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def random_weights(outputs: int, inputs: int, bits: int, group: int, seed: int) -> QuantizedWeights:
    """Codes and multipliers over their whole ranges."""
    rng = np.random.default_rng(seed)
    limit = largest_code(bits)
    codes = rng.integers(-limit, limit + 1, (outputs, inputs, 1, 1)).astype(np.int8)
    scale = (rng.random(outputs) + 0.5).astype(np.float32) / 64
    if not group:
        return QuantizedWeights(codes, scale, bits)
    count = -(-inputs // group) if inputs > group else 1
    multiplier = rng.integers(1, largest_multiplier(bits) + 1, (outputs, count)).astype(np.uint8)
    return QuantizedWeights(codes, scale, bits, multiplier, group)


def spec_of(rows: int, w: QuantizedWeights, instruction: str, out: Output | None = None) -> KernelSpec:
    outputs, inputs = w.codes.shape[:2]
    shape = ConvolutionShape(rows, 1, 1, inputs, outputs)
    bits = 2 if w.bits == 2 else 4
    return KernelSpec(
        "weight_only", shape, "float32", out or Output("float32"), instruction, bits, w.effective_group
    )


def exact(x: np.ndarray, w: QuantizedWeights, bias: np.ndarray) -> np.ndarray:
    real = w.int8.astype(np.float64) * w.scale.astype(np.float64)[:, None, None, None]
    return x.astype(np.float64) @ real[:, :, 0, 0].T + bias


def largest_error(found: np.ndarray, x: np.ndarray, w: QuantizedWeights, bias: np.ndarray) -> float:
    """Relative to the sum of the magnitudes that are added, each x as large as the largest of its block."""
    largest = np.abs(x.astype(np.float64))
    for at in range(0, x.shape[1], BLOCK):
        largest[:, at : at + BLOCK] = largest[:, at : at + BLOCK].max(axis=1, keepdims=True)
    magnitude = largest @ np.abs(w.real[:, :, 0, 0].astype(np.float64)).T + np.abs(bias)
    return float((np.abs(found - exact(x, w, bias)) / np.maximum(magnitude, 1e-30)).max())


@INSTRUCTIONS
@EXAMPLES
@given(
    rows=st.sampled_from([1, 2, 3, 5, 9]),
    inputs=st.sampled_from([1, 31, 32, 64, 100, 129]),
    outputs=st.sampled_from([1, 8, 16, 24, 33, 64]),
    bits=st.sampled_from([2, 3, 4]),
    group=st.sampled_from([0, 32, 64]),
    tile=st.sampled_from([None, WeightOnlyTile(1, 2, 1), WeightOnlyTile(2, 1, 1)]),
    spread=st.sampled_from([0.0, 4.0]),
    seed=st.integers(0, 99),
)
def test_kernels_are_as_good_as_float_sums(
    instruction, rows, inputs, outputs, bits, group, tile, spread, seed
):
    require(instruction)
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, inputs)) * rng.lognormal(0, spread, (rows, inputs))).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    w = random_weights(outputs, inputs, bits, group, seed)
    spec = spec_of(rows, w, instruction)
    kernel = spec.schedule() if tile is None else weight_only(spec.weight_only, spec.out, tile)
    found = run(kernel, instruction, x, *packed_constants(w, bias, spec))
    assert largest_error(found, x, w, bias) < 1e-6


def test_blocks_of_any_size_are_exact_to_their_largest_element():
    """Huge, tiny, subnormal and all-zero rows; sums of one code show every bit that is kept."""
    x = np.zeros((8, 64), np.float32)
    x[0, 3], x[1, 40], x[2, 5], x[3, 63] = 3.4e38, -1.2345678e-30, 1e-42, 2.0**127
    x[4] = np.linspace(-1, 1, 64)
    x[5, ::2], x[5, 1::2] = 1.0, 2.0**-21
    w = QuantizedWeights(np.eye(64, dtype=np.int8)[:, :, None, None], np.ones(64, np.float32), 4)
    spec = spec_of(8, w, "avx2")
    require("avx2")
    found = run(spec.schedule(), "avx2", x, *packed_constants(w, np.zeros(64, np.float32), spec))
    for row in (3, 5, 6, 7):
        np.testing.assert_array_equal(found[row], x[row])
    for row in (0, 1):
        np.testing.assert_allclose(found[row], x[row], rtol=2.0**-22)
    assert not found[2].any()
    np.testing.assert_allclose(found[4], x[4], rtol=0, atol=2.0**-22)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_shows_in_its_row_only(value):
    require("avx2")
    w = random_weights(16, 96, 4, 32, 0)
    x = np.ones((3, 96), np.float32)
    x[1, 70] = value
    spec = spec_of(3, w, "avx2")
    found = run(spec.schedule(), "avx2", x, *packed_constants(w, np.zeros(16, np.float32), spec))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


@INSTRUCTIONS
def test_the_activation_is_applied(instruction):
    require(instruction)
    w = random_weights(20, 64, 4, 32, 3)
    bias, x = np.zeros(20, np.float32), np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    spec = spec_of(2, w, instruction, Output("float32", 0.0, 6.0))
    found = run(spec.schedule(), instruction, x, *packed_constants(w, bias, spec))
    np.testing.assert_allclose(found, np.clip(exact(x, w, bias), 0, 6), atol=1e-4)
    assert (found == 0).any()
    assert (found == 6).any()


def test_specs_are_read_back():
    spec = spec_of(1, random_weights(8, 64, 4, 32, 0), "avx2", Output("float32", 0.0))
    assert KernelSpec.from_json(spec.to_json()) == spec
    assert spec.precision == "w4g32a32"


def mlp() -> onnx.ModelProto:
    """Three layers on rank 3, and a sum that has no weights."""
    nodes = [
        node("MatMul", "x w1", "up"),
        node("Add", "up b1", "up_b"),
        node("Relu", "up_b", "up_r"),
        node("MatMul", "up_r w2", "down"),
        node("Add", "down x", "joined"),
        node("MatMul", "joined w3", "y"),
    ]
    constants = {
        "w1": weights(72, 130, seed=1, scale=0.1),
        "b1": weights(130, seed=2),
        "w2": weights(130, 72, seed=3, scale=0.1),
        "w3": weights(72, 9, seed=4, scale=0.1),
    }
    return network(nodes, {"x": [1, 5, 72]}, ["y"], constants)


def dequantized(model: onnx.ModelProto, bits: int, group: int) -> onnx.ModelProto:
    """The same network with every matrix of its weights rounded."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.ndim == 2:
            real = round_to_nearest(np.ascontiguousarray(value.T)[:, :, None, None], bits, group).real
            tensor.CopyFrom(onnx.numpy_helper.from_array(real[:, :, 0, 0].T, tensor.name))
    return result


def reference(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize(
    ("precision", "bits", "group"),
    [("w4g32a32", 4, 32), ("w4a32", 4, 0), ("w2g32a32", 2, 32), ("w3g64a32", 3, 64)],
)
def test_networks_compute_with_the_rounded_weights(tmp_path: Path, precision, bits, group):
    """Without calibration, into a package, against ONNX Runtime on the same weights in float."""
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    package = compile_model(
        tmp_path / "mlp.onnx", precision=precision, output=tmp_path / "mlp.tar", baseline=False
    )
    executed = {record.name: record.executed for record in package.metadata.operators}
    assert [executed[name] for name in ("up", "down", "y")] == [precision] * 3
    assert executed["joined"] == "fp32"
    (reason,) = [r.reason for r in package.metadata.operators if r.name == "joined"]
    assert reason == "add has no weights"
    x = np.random.default_rng(0).standard_normal((1, 5, 72)).astype(np.float32)
    (found,) = Session(package).run({"x": x})
    (expected,) = reference(dequantized(mlp(), bits, group), x=x)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
    assert package.metadata.storage.weights < 0.4 * package.metadata.storage.weights_fp32
