"""Float activations with smaller weights: kernels and compiled networks against float64, and what they store."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from frontend_networks import network, run_reference, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run, target_of
from small_networks import image_network, kernel, node, prepare, prepared, runner
from tvm import te

from tvm_mpq.compiler import compile_model
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.narrow_weights import to_bfloat16, widened
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.weight_only import BLOCK, WeightOnlyTile
from tvm_mpq.kernels.weight_only_panel import weight_only_panel
from tvm_mpq.kernels.weight_only_program import weight_only
from tvm_mpq.precision import Precision
from tvm_mpq.quantization.half import from_half, holds, to_half
from tvm_mpq.quantization.rounding import round_to_nearest
from tvm_mpq.quantization.weights import QuantizedWeights, largest_code, largest_multiplier
from tvm_mpq.runtime.session import Session
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import WEIGHTED_KINDS
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
    rows=st.sampled_from([1, 2, 3, 5, 9, 23]),
    inputs=st.sampled_from([1, 31, 32, 64, 100, 129]),
    outputs=st.sampled_from([1, 8, 16, 24, 33, 64]),
    bits=st.sampled_from([2, 3, 4]),
    group=st.sampled_from([0, 32, 64]),
    tile=st.sampled_from(
        [None, WeightOnlyTile(1, 2, 1), WeightOnlyTile(2, 1, 1), WeightOnlyTile(4, 2, 1, panel=True)]
    ),
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
    program = spec.schedule()
    if tile is not None:
        program = (weight_only_panel if tile.panel else weight_only)(spec.weight_only, spec.out, tile)
    found = run(program, instruction, x, *packed_constants(w, bias, spec))
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
    program = weight_only(spec.weight_only, spec.out, WeightOnlyTile(2, 4, 4))
    found = run(program, "avx2", x, *packed_constants(w, np.zeros(64, np.float32), spec))
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


def images() -> onnx.ModelProto:
    """Convolutions that take Winograd's algorithm, strided, grouped, depthwise, 1×1 and transposed; a matrix."""
    nodes = [
        node("Conv", "x w1 b1", "wide", pads=[1, 1, 1, 1]),
        node("Relu", "wide", "wide_r"),
        node("Conv", "wide_r w2 b2", "again", pads=[1, 1, 1, 1]),
        node("Conv", "again w3", "depth", group=64, pads=[2, 2, 2, 2]),
        node("Conv", "depth w4", "grouped", group=4, strides=[2, 2], dilations=[2, 1]),
        node("Conv", "grouped w5 b5", "point"),
        node("ConvTranspose", "point w6", "back", strides=[2, 2]),
        node("GlobalAveragePool", "back", "gap"),
        node("Flatten", "gap", "flat"),
        node("Gemm", "flat w7 b7", "y"),
    ]
    constants = {
        "w1": kernel(64, 5, 3, 3, 1),
        "b1": weights(64, seed=2),
        "w2": kernel(64, 64, 3, 3, 3),
        "b2": weights(64, seed=4),
        "w3": kernel(64, 1, 5, 5, 5),
        "w4": kernel(36, 16, 3, 3, 6),
        "w5": kernel(40, 36, 1, 1, 7),
        "b5": weights(40, seed=8),
        "w6": kernel(40, 12, 2, 2, 9),
        "w7": weights(12, 6, seed=10, scale=0.3),
        "b7": weights(6, seed=11),
    }
    return network(nodes, {"x": [1, 5, 34, 32]}, ["y", "back"], constants)


def stored(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """The same network in float, its weights those that ``precision`` stores."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    (transposed,) = [n.input[1] for n in model.graph.node if n.op_type == "ConvTranspose"] or [""]
    for tensor in result.graph.initializer:
        w = onnx.numpy_helper.to_array(tensor)
        if w.ndim == 1:
            continue
        if precision.floating is not None:
            w = from_half(to_half(w, precision.floating))
        elif w.ndim == 2:
            w = rounded(w.T[:, :, None, None], precision)[:, :, 0, 0].T
        elif tensor.name == transposed:
            # Each of its taps is an output channel of its own (see quantization.phases).
            channels, outputs = w.shape[:2]
            phases = rounded(w.transpose(2, 3, 1, 0).reshape(-1, channels, 1, 1), precision)
            w = phases.reshape(2, 2, outputs, channels).transpose(3, 2, 0, 1)
        else:
            w = rounded(w, precision)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(w), tensor.name))
    return result


def rounded(w: np.ndarray, precision: Precision) -> np.ndarray:
    return round_to_nearest(np.ascontiguousarray(w), precision.weight_bits, precision.group).real


@pytest.mark.parametrize(
    ("instruction", "make", "name"),
    [
        ("generic", mlp, "w4g32a32"),
        ("generic", images, "fp16"),
        ("avx2", mlp, "w2g32a32"),
        ("avx2", mlp, "w5g32a32"),
        ("avx2", images, "w4g32a32"),
        ("avx2", images, "w8a32"),
        ("avx2", images, "fp16"),
        ("avx2", images, "bf16"),
    ],
)
def test_networks_compute_in_float_with_the_weights_they_store(instruction: str, make, name: str) -> None:
    """Against ONNX Runtime on the rounded weights: nothing else may be rounded."""
    require(instruction)
    model, target = make(), target_of(instruction)
    small = prepared(make)
    annotated = small.annotate(small.plan(name))
    executed = {attr.text(f, attr.KIND): attr.text(f, attr.PRECISION) for _, f, _ in attr.calls(annotated)}
    assert {executed[kind] for kind in executed if kind in WEIGHTED_KINDS} == {name}
    lowered = small.lower(annotated, target)
    kernels = [variable.name_hint for variable, _ in lowered.functions_items()]
    assert any("winograd" in kernel for kernel in kernels) == (make is images)
    found = runner(lowered, target)(*small.feeds().values())
    for ours, expected in zip(
        found, run_reference(stored(model, Precision.parse(name)), small.feeds()), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=4e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "share"), [("w4g32a32", 0.27), ("w4a32", 0.26), ("w8a32", 0.3), ("fp16", 0.55)]
)
def test_packages_need_no_samples_and_store_small_weights(tmp_path: Path, name: str, share: float) -> None:
    onnx.save(mlp(), tmp_path / "mlp.onnx")
    package = compile_model(
        tmp_path / "mlp.onnx", precision=name, output=tmp_path / "mlp.tar", baseline=False
    )
    records = {record.name: record for record in package.metadata.operators}
    assert [records[n].executed for n in ("up", "down", "y")] == [name] * 3
    assert (records["joined"].executed, records["joined"].reason) == ("fp32", "add has no weights")
    x = np.random.default_rng(0).standard_normal((1, 5, 72)).astype(np.float32)
    (found,) = Session(package).run({"x": x})
    (expected,) = run_reference(stored(mlp(), Precision.parse(name)), {"x": x})
    np.testing.assert_allclose(found, expected, atol=4e-6 * np.abs(expected).max())
    assert package.metadata.storage.weights < share * package.metadata.storage.weights_fp32


def test_weights_that_half_floats_cannot_hold_stay_in_fp32() -> None:
    large = kernel(4, 4, 3, 3, 1)
    large[2, 1, 0, 0] = 65520.0
    small = prepare(image_network([node("Conv", "x w", "y")], ["y"], w=large))
    (record,) = [f for _, f, _ in attr.calls(small.annotate(small.plan("fp16")))]
    assert attr.text(record, attr.PRECISION) == "fp32"
    assert attr.text(record, attr.REASON) == "fp16 holds no weights as large as 65520"
    (record,) = [f for _, f, _ in attr.calls(small.annotate(small.plan("bf16")))]
    assert attr.text(record, attr.PRECISION) == "bf16"


@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50),
    dtype=st.sampled_from(["float16", "bfloat16"]),
)
@settings(max_examples=200, deadline=None)
def test_half_floats_are_the_nearest(bits: list[int], dtype: str) -> None:
    w = np.array(bits, np.uint32).view(np.float32)
    w = w[np.isfinite(w)]
    w = w[[holds(dtype, each) for each in w[:, None]]]
    expected = w.astype(dtype if dtype == "float16" else ml_dtypes.bfloat16).astype(np.float32)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(from_half(to_half(w, dtype)), expected)


def test_every_half_float_is_widened_exactly() -> None:
    """By arithmetic, where the processor has no instruction for it."""
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits.view(np.float16).astype(np.float32)
    x = te.placeholder((2**16,), "uint16", "x")
    y = te.compute((2**16,), lambda i: widened(x[i], "float16_bits"), "y")
    found = run(te.create_prim_func([x, y]), "generic", bits)
    finite = np.isfinite(halves)
    np.testing.assert_array_equal(found[finite], halves[finite])


def test_floats_are_rounded_to_the_nearest_bfloat16() -> None:
    """Ties, overflow to infinity, subnormal numbers and NaNs among them."""
    rng = np.random.default_rng(0)
    special = [
        0,
        0x7F7FFFFF,
        0x7F800000,
        0xFF800000,
        0x7F800001,
        0xFFFFFFFF,
        0x7FC00000,
        0x3F808000,
        0x3F818000,
        1,
    ]
    bits = np.concatenate([np.array(special, np.uint32), rng.integers(0, 2**32, 10006, dtype=np.uint32)])
    values = bits.view(np.float32)
    x = te.placeholder(values.shape, "float32", "x")
    y = te.compute(values.shape, lambda i: to_bfloat16(x[i]), "y")
    found = run(te.create_prim_func([x, y]), "generic", values).view(ml_dtypes.bfloat16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
