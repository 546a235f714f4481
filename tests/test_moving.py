"""Slices, splits and resizes: canonical forms, float against ONNX Runtime, codes against NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from frontend_networks import assert_agrees, kinds, network, run_reference
from interpreter import interpret
from onnx import helper
from small_networks import kernel, node, prepare

from tvm_mpq.transform import attributes as attr

COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDINGS = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]


def resizes(size: list[int], ways: list[dict[str, str]]) -> onnx.ModelProto:
    """A convolution, resized in several ways side by side, each of which another convolution reads."""
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1])]
    for number, way in enumerate(ways):
        resized = f"r{number}"
        nodes.append(helper.make_node("Resize", ["c", "", "", "size"], [resized], name=resized, **way))
        nodes.append(node("Conv", f"{resized} v", f"y{number}"))
    constants = {"w": kernel(9, 3, 3, 3, 1), "v": kernel(4, 9, 1, 1, 2), "size": np.array([2, 9, *size])}
    return network(nodes, {"x": [2, 3, 6, 5]}, [f"y{number}" for number in range(len(ways))], constants)


def assert_all_agree(model: onnx.ModelProto, tolerance: float = 1e-5) -> set[str]:
    """Float kernels with ONNX Runtime, codes with NumPy and both with each other; the float operators' names."""
    prepared = prepare(model)
    feeds = prepared.feeds()
    exact = run_reference(model, feeds)
    floats = prepared.run(prepared.lower(prepared.annotate(prepared.plan("fp32"))), feeds)
    annotated = prepared.annotate()
    integers = prepared.run(prepared.lower(annotated), feeds)
    executed = {
        attr.text(function, attr.OPERATOR): attr.text(function, attr.PRECISION)
        for _, function, _ in attr.calls(annotated)
    }
    for ours, theirs, integer in zip(floats, exact, integers, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
        assert np.corrcoef(integer.ravel(), theirs.ravel())[0, 1] > 0.998
    for integer, wanted in zip(integers, interpret(annotated, feeds), strict=True):
        np.testing.assert_array_equal(integer, wanted, strict=True)
    return {name for name, precision in executed.items() if precision != "w8a8"}


@pytest.mark.parametrize("size", [[12, 10], [18, 5], [3, 15]])
def test_linear_resizes(size: list[int]) -> None:
    ways = [{"mode": "linear", "coordinate_transformation_mode": way} for way in COORDINATES]
    model = resizes(size, ways)
    assert kinds(assert_agrees(model)) == ["conv2d", *["resize_linear", "conv2d"] * len(ways)]
    assert assert_all_agree(model) == set()


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_nearest_resizes(coordinates: str) -> None:
    common = {"mode": "nearest", "coordinate_transformation_mode": coordinates}
    ways = [{**common, "nearest_mode": rounding} for rounding in ROUNDINGS]
    model = resizes([12, 20], ways)
    assert kinds(assert_agrees(model)) == ["conv2d", *["resize_nearest", "conv2d"] * len(ways)]
    assert assert_all_agree(model) == set()


def test_slices_and_splits_move_codes() -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Split", ["c", "parts"], ["a", "unused", "b"], name="split", axis=1),
        node("Slice", "c one far three", "right"),
        node("Conv", "a v", "d"),
        node("Conv", "right u", "y"),
        node("Add", "d b", "z"),
    ]
    constants = {
        "w": kernel(9, 3, 3, 3, 1),
        "v": kernel(4, 3, 1, 1, 2),
        "u": kernel(2, 9, 2, 2, 3),
        "parts": np.array([3, 2, 4]),
        "one": np.array([-4]),
        "far": np.array([9999]),
        "three": np.array([3]),
    }
    model = network(nodes, {"x": [2, 3, 6, 5]}, ["y", "z"], constants)
    mod = assert_agrees(model)
    assert sorted(kinds(mod)) == sorted(["conv2d", "slice", "slice", "slice", "conv2d", "conv2d", "add"])
    assert assert_all_agree(model) == set()


@pytest.mark.parametrize(("starts", "steps"), [([0], [2]), ([-1], [-1])])
def test_slices_with_other_steps_are_left_to_tvm(starts: list[int], steps: list[int]) -> None:
    constants = {
        "s": np.array(starts),
        "e": np.array([-99 if steps[0] < 0 else 99]),
        "a": np.array([1]),
        "p": np.array(steps),
    }
    model = network([node("Slice", "x s e a p", "y")], {"x": [2, 5]}, ["y"], constants)
    assert kinds(assert_agrees(model)) == ["onnx_slice"]


def test_concatenations_of_one_grid_and_of_several() -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("MaxPool", "c", "m", kernel_shape=[1, 1]),
        node("Concat", "c m", "same", axis=1),
        node("Concat", "same c", "row", axis=1),
        node("Conv", "row v", "y"),
    ]
    constants = {"w": kernel(9, 3, 3, 3, 1), "v": kernel(4, 27, 1, 1, 2)}
    assert assert_all_agree(network(nodes, {"x": [2, 3, 6, 5]}, ["y"], constants)) == set()
