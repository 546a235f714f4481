"""Whole networks with TVM's host code and our GPU kernels on the emulated device."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from interpreter import interpret
from small_networks import mixed, prepared, tokens

from tvm_mpq import sample
from tvm_mpq.build import build
from tvm_mpq.cli import main
from tvm_mpq.cuda.source import cuda_code
from tvm_mpq.cuda_check.check import check_network
from tvm_mpq.cuda_check.emulator import Check
from tvm_mpq.cuda_check.network import EmulatedNetwork
from tvm_mpq.errors import MpqError
from tvm_mpq.target import load_target


def test_a_network_equals_integer_arithmetic_in_numpy() -> None:
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
    sample.write_files(tmp_path)
    arguments = [
        "check-cuda",
        str(tmp_path / "fashion.onnx"),
        "--calibration",
        str(tmp_path / "calibration.npz"),
    ]
    report = tmp_path / "report.json"
    assert main([*arguments, "--target", "cuda-sm80", "--samples", "3", "--json", str(report)]) == 0
    assert "output 0: bit for bit the CPU's" in capsys.readouterr().out
    result = json.loads(report.read_text())
    assert result["kernels"] >= 15
    assert [output["different"] for output in result["outputs"]] == [0]
    assert result["outputs"][0]["elements"] == 30


def test_4_bit_weights_and_floats_mixed() -> None:
    prepared_network, target = prepared(mixed), load_target("cuda-sm90")
    names = prepared_network.names
    cycle = ("w4a8", "w4g32a8", "w8a8", "fp32")
    plan = prepared_network.plan(others={name: cycle[place % 4] for place, name in enumerate(names)})
    result = check_network(
        prepared_network.mod,
        plan,
        prepared_network.ranges,
        target,
        [list(prepared_network.feeds().values())],
    )
    assert all(output.largest_difference <= 1e-5 * output.largest for output in result.outputs)


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
