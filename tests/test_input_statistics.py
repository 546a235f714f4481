"""Moments of real networks' inputs, and what rounding by them does to the sample's outputs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tvm import IRModule

from tvm_mpq import sample
from tvm_mpq.calibration import calibrate
from tvm_mpq.dataset import Dataset, open_dataset
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.patches import Window, patches
from tvm_mpq.quantization.rounding import round_to_nearest
from tvm_mpq.quantization.second_order import SecondOrder, bias_change, round_second_order
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.sensitivity.input_statistics import input_statistics
from tvm_mpq.sensitivity.sequential import round_sequentially
from tvm_mpq.target import host_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.change_biases import Biases
from tvm_mpq.transform.operator_body import read_body

WEIGHTED = ("conv2d", "depthwise_conv2d", "matmul")


@pytest.fixture(scope="module")
def network() -> IRModule:
    return import_onnx(sample.model_path())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    sample.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def images(network: IRModule, folder: Path) -> Dataset:
    return open_dataset(folder / "calibration.npz", io_specs(network)[0]).take(64)


@pytest.fixture(scope="module")
def held_out(network: IRModule, folder: Path) -> Dataset:
    return open_dataset(folder / "test.npz", io_specs(network)[0]).take(200)


@pytest.fixture(scope="module")
def ranges(network: IRModule, images: Dataset) -> TensorRanges:
    return calibrate(network, images, "minmax", host_target())


def test_rounding_by_moments_keeps_outputs_closer(
    network: IRModule, images: Dataset, held_out: Dataset, ranges: TensorRanges
) -> None:
    names = [operator.name for operator in operators(network)]
    functions = {o.name: network[o.global_var_name] for o in operators(network) if o.kind in WEIGHTED}
    eight = PrecisionPlan.uniform(names, Precision.parse("w8a8"))
    statistics = input_statistics(network, eight, ranges, images, host_target())
    assert list(statistics) == list(functions)

    # The first operator reads the quantized image.
    first = next(iter(functions.values()))
    attributes = read_body(first).attributes
    window = Window((3, 3), tuple(attributes.strides), tuple(attributes.padding), tuple(attributes.dilation))
    pixels = images.batch(range(len(images)))["image"].transpose(0, 2, 3, 1)
    grid = Grid.from_range(*ranges.inputs["image"])
    seen = patches(grid.dequantize(grid.quantize(pixels)), window)
    found = statistics[next(iter(functions))]
    # A grid of positions is seen, not all.
    np.testing.assert_allclose(found.mean[0], seen[0].mean(axis=1), atol=0.1)
    covariance = found.second[0] - np.outer(found.mean[0], found.mean[0])
    np.testing.assert_allclose(covariance, np.cov(seen[0], bias=True), atol=0.15)

    four = PrecisionPlan.uniform(names, Precision.parse("w4a8"))
    weights, nearest, rounded, changes = {}, {}, {}, {}
    for name, function in functions.items():
        weight = read_body(function).weight
        assert weight is not None
        weights[name] = weight if weight.ndim == 4 else np.ascontiguousarray(weight.T)[:, :, None, None]
        nearest[name] = round_to_nearest(weights[name], 4)
        rounded[name] = round_second_order(weights[name], nearest[name], statistics[name])
        changes[name] = bias_change(weights[name], rounded[name], statistics[name])
    evaluator = PlanEvaluator(network, ranges, held_out, get_loss("cross-entropy"))
    exact = np.concatenate(evaluator.outputs(PrecisionPlan.uniform(names, FP32)), axis=1)

    def error(codes: Mapping[str, QuantizedWeights], biases: Biases | None = None) -> float:
        made = np.concatenate(evaluator.outputs(four, codes, biases), axis=1)
        return float(((made - exact) ** 2).mean())

    plain, better, best = error(nearest), error(rounded), error(rounded, changes)
    assert better < 0.85 * plain
    assert best < 0.95 * better

    # One after another, each towards fp32's output: closer still, and no operator's mean is off.
    in_order, biases = round_sequentially(
        network, four, ranges, images, host_target(), weights, nearest, SecondOrder()
    )
    assert set(in_order) == set(biases) == set(functions)
    assert error(in_order, biases) < 0.9 * best
