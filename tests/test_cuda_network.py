"""Whole networks with TVM's host code and our GPU kernels on the emulated device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cuda_texts import require_compiler
from frontend_networks import network
from interpreter import interpret
from small_networks import kernel, mixed, node, prepare, prepared, tokens

from tvm_mpq import sample
from tvm_mpq.build import build
from tvm_mpq.cli import main
from tvm_mpq.compiler import compile_model
from tvm_mpq.cuda.source import cuda_code
from tvm_mpq.cuda_check.check import check_network
from tvm_mpq.cuda_check.emulator import Check
from tvm_mpq.cuda_check.network import EmulatedNetwork
from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256
from tvm_mpq.frontend import import_onnx, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.plan_weights import PlanWeights, save_plan
from tvm_mpq.precision import W8A8, Precision
from tvm_mpq.quantization.rounding import round_to_nearest
from tvm_mpq.runtime.session import Session
from tvm_mpq.target import load_target
from tvm_mpq.transform.assign_grids import TensorRanges


def test_a_network_equals_integer_arithmetic_in_numpy() -> None:
    require_compiler()
    prepared_network, target = prepared(tokens), load_target("jetson-orin")
    annotated = prepared_network.annotate()
    lowered = prepared_network.lower(annotated, target)
    emulated = EmulatedNetwork(lowered, target, Check.ALWAYS)
    feeds = prepared_network.feeds()
    for batch in (feeds, {name: array * np.float32(25) for name, array in feeds.items()}):
        for ours, exact in zip(emulated.run(*batch.values()), interpret(annotated, batch), strict=True):
            np.testing.assert_array_equal(ours, exact, strict=True)
            assert len(np.unique(ours)) > 10, "a network that says nothing proves nothing"
    # This machine's processor in place of the target's leaves the GPU's source as it is.
    assert emulated.source == cuda_code(build(lowered, target).planned, target).source


def test_the_sample_network_is_bit_for_bit_the_processors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With weights of 8 bits and of 4 bits in groups."""
    require_compiler()
    sample.write_files(tmp_path)
    plan, report = tmp_path / "plan.json", tmp_path / "report.json"
    names = [operator.name for operator in operators(import_onnx(sample.model_path()))]
    cycle = [Precision.parse(text) for text in ("w8a8", "w4g32a8")]
    chosen = {name: cycle[place % 2] for place, name in enumerate(names)}
    plan.write_text(PrecisionPlan(chosen).to_json())
    arguments = [
        "check-cuda",
        str(tmp_path / "fashion.onnx"),
        "--calibration",
        str(tmp_path / "calibration.npz"),
    ]
    arguments += [
        "--plan",
        str(plan),
        "--target",
        "cuda-sm80",
        "--samples",
        "2",
        "--calibration-samples",
        "8",
        "--json",
        str(report),
    ]
    assert main(arguments) == 0
    assert "output 0: bit for bit the CPU's" in capsys.readouterr().out
    result = json.loads(report.read_text())
    assert result["kernels"] >= 15
    assert [(output["different"], output["elements"]) for output in result["outputs"]] == [(0, 20)]


def test_a_searched_plan_is_checked_with_its_own_weights(tmp_path: Path) -> None:
    """Codes of which none is what rounding to nearest gives; biases, ranges and a scale beside them."""
    require_compiler()
    model, data, saved = (tmp_path / name for name in ("one.onnx", "data.npz", "plan.json"))
    images, weight = np.random.default_rng(0).normal(size=(2, 1, 3, 6, 5)), kernel(8, 3, 3, 3, 1)
    onnx.save(
        network([node("Conv", "x w", "y", pads=[1] * 4)], {"x": [1, 3, 6, 5]}, ["y"], {"w": weight}), model
    )
    np.savez(data, x=images[:, 0].astype(np.float32))
    plan, rounded = PrecisionPlan.uniform(["y"], W8A8), round_to_nearest(weight, 8, 0, "y")
    weights = PlanWeights(
        sha256(model.read_bytes()),
        TensorRanges({"x": (-1.5, 2.0)}, {"y": (-3.0, 3.5)}),
        {"y": replace(rounded, codes=-rounded.codes)},
        {"y": np.linspace(-1, 1, 8, dtype=np.float32)},
        {"y": 1.25},
        {},
        {"observer": "minmax", "samples": 2, "seed": 0, "sha256": ""},
    )
    save_plan(saved, plan, weights)
    report = tmp_path / "report.json"
    arguments = ["check-cuda", str(model), "--calibration", str(data), "--plan", str(saved)]
    assert main([*arguments, "--json", str(report)]) == 0
    (output,) = json.loads(report.read_text())["outputs"]
    package = compile_model(model, plan=plan, weights=weights)
    (expected,) = Session(package).run(images[0].astype(np.float32))
    assert output["different"] == 0
    assert output["largest"] == np.abs(expected).max()


def test_half_floats_with_weights_of_four_bits_and_with_each_other() -> None:
    """The processor rounds no activations, as half floats do to 11 bits, and sums the same codes."""
    require_compiler()
    nodes = [
        node("MatMul", "x w", "rows"),
        node("Transpose", "rows", "turned", perm=[0, 2, 1]),
        node("MatMul", "rows turned", "scores"),
        node("Softmax", "scores", "shares", axis=-1),
        node("MatMul", "shares rows", "y"),
    ]
    one = prepare(network(nodes, {"x": [2, 9, 40]}, ["y"], {"w": kernel(40, 24, 1, 1, 0)[:, :, 0, 0]}))
    target, inputs = load_target("jetson-orin"), [*one.feeds().values()]
    (output,) = check_network(one.mod, one.plan("w4g32a16"), one.ranges, target, [inputs]).outputs
    assert 0 < output.largest_difference < 2**-9 * output.largest


def test_a_target_without_a_gpu() -> None:
    prepared_network = prepared(mixed)
    with pytest.raises(MpqError, match="cascadelake has no GPU"):
        check_network(
            prepared_network.mod,
            prepared_network.plan("w8a8"),
            prepared_network.ranges,
            load_target("cascadelake"),
            [],
        )
