"""Transposed convolutions: the canonical form, float against ONNX Runtime, 8 bits against NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from frontend_networks import assert_agrees, kinds, network, run_reference, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret
from onnx import helper
from small_networks import kernel, node, prepare

from tvm_mpq.frontend import operators
from tvm_mpq.quantization.phases import phase_values, phase_weights


def upsampling(kernel_shape: tuple[int, int], group: int = 1, **attributes) -> onnx.ModelProto:
    """A transposed convolution [2, 6, 5, 4] → [2, 8 or 6·2, …] with a bias and a relu."""
    outputs = 12 if group == 6 else 8
    constants = {
        "w": weights(6, outputs // group, *kernel_shape, seed=3, scale=0.3),
        "b": weights(outputs, seed=4, scale=0.3),
    }
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w", "b"], ["up"], name="up", group=group, **attributes),
        node("Relu", "up", "y"),
    ]
    return network(nodes, {"x": [2, 6, 5, 4]}, ["y"], constants)


CASES = [
    upsampling((2, 2), strides=[2, 2]),
    upsampling((4, 4), strides=[2, 2], pads=[1, 1, 1, 1]),
    upsampling((3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    upsampling((3, 5), strides=[3, 2], pads=[0, 1, 2, 3]),
    upsampling((3, 3), pads=[1, 0, 1, 2]),
    upsampling((1, 2), strides=[2, 3], output_padding=[1, 2]),
    upsampling((3, 2), strides=[2, 2], dilations=[2, 3], pads=[2, 1, 0, 1]),
    upsampling((3, 3), group=2, strides=[2, 2], pads=[1, 1, 0, 0]),
    upsampling((4, 4), group=6, strides=[2, 2], pads=[1, 1, 1, 1]),
    upsampling((3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    upsampling((3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    upsampling((4, 3), strides=[2, 2], auto_pad="VALID"),
    upsampling((3, 3), strides=[2, 2], output_shape=[10, 8]),
]
BOTH = pytest.mark.parametrize("model", CASES)


@BOTH
def test_the_canonical_form(model: onnx.ModelProto) -> None:
    mod = assert_agrees(model)
    assert [(each.name, each.kind) for each in operators(mod)] == [("up", "conv2d_transpose")]


@BOTH
def test_float_kernels_agree_with_onnx_runtime_and_8_bit_ones_with_numpy(model: onnx.ModelProto) -> None:
    network = prepare(model)
    feeds = network.feeds()
    (exact,) = run_reference(model, feeds)
    (ours,) = network.run(network.lower(network.annotate(network.plan("fp32"))), feeds)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    annotated = network.annotate()
    (integer,) = network.run(network.lower(annotated), feeds)
    np.testing.assert_array_equal(integer, interpret(annotated, feeds)[0], strict=True)
    assert np.corrcoef(integer.ravel(), exact.ravel())[0, 1] > 0.999


def test_inside_an_8_bit_region() -> None:
    """Codes are interleaved as bytes, and what reads them stays in 8 bits; one axis is two of height 1."""
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("ConvTranspose", "c u", "up", strides=[2, 2]),
        node("Conv", "up v", "d"),
        node("Reshape", "d dims", "line"),
        node("ConvTranspose", "line l", "long", strides=[3], pads=[1, 0]),
        node("MatMul", "long m", "y"),
    ]
    constants = {
        "w": kernel(6, 3, 3, 3, 1),
        "u": weights(6, 5, 2, 2, seed=2, scale=0.4),
        "v": kernel(4, 5, 1, 1, 3),
        "l": weights(4, 2, 4, seed=4, scale=0.4),
        "dims": np.array([2, 4, 80]),
        "m": weights(240, 3, seed=5, scale=0.1),
    }
    model = network(nodes, {"x": [2, 3, 5, 4]}, ["y"], constants)
    prepared = prepare(model)
    assert kinds(prepared.mod).count("conv2d_transpose") == 2
    annotated = prepared.annotate()
    feeds = prepared.feeds()
    (integer,) = prepared.run(prepared.lower(annotated), feeds)
    np.testing.assert_array_equal(integer, interpret(annotated, feeds)[0], strict=True)
    assert np.corrcoef(integer.ravel(), run_reference(model, feeds)[0].ravel())[0, 1] > 0.999


def test_padding_larger_than_the_kernel_stays_with_the_importer() -> None:
    assert "convtranspose" in kinds(assert_agrees(upsampling((2, 2), strides=[2, 2], pads=[2, 0, 0, 0])))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_phases_hold_every_tap_once(groups: int, size: tuple[int, int], stride: tuple[int, int]) -> None:
    weight = np.arange(1, 1 + groups * 2 * 3 * size[0] * size[1]).reshape(groups * 2, 3, *size)
    phases = phase_weights(weight, groups, stride)
    assert phases.shape == (
        groups * stride[0] * stride[1] * 3,
        2,
        -(-size[0] // stride[0]),
        -(-size[1] // stride[1]),
    )
    assert sorted(phases[phases > 0]) == list(range(1, weight.size + 1))
    values = phase_values(np.arange(groups * 3), groups, stride)
    assert len(values) == len(phases)
    assert (values.reshape(groups, -1, 3) == np.arange(groups * 3).reshape(groups, 1, 3)).all()
