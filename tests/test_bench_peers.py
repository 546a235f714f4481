"""The benchmark of peers: real networks in real runtimes, and the arithmetic of its table."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import bench_peers
import networks
from peers.contestants import OnnxRuntime, OpenVino
from peers.qdq import quantized
from peers.report import Row, geometric_mean, table
from peers.rounds import interleave, settle

FIELDS = ["network", "precision", "threads", "ours_ms", "onnxruntime_ms", "openvino_ms", "speedup_to_best"]
seconds = st.floats(1e-6, 1e3)


def test_times_a_network_and_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    arguments = ["--networks", "mobilenetv2", "--threads", "1", "--rounds", "2", "--calls", "1"]
    arguments += ["--peers", "onnxruntime", "--without-ours", "--cache", str(tmp_path / "cache")]
    assert bench_peers.main([*arguments, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["network"], row["precision"], row["threads"]) for row in rows] == [
        ("mobilenetv2", "fp32", 1),
        ("mobilenetv2", "w8a8", 1),
    ]
    for row in rows:
        assert list(row) == FIELDS
        # 0.3 G multiply-adds take between 0.1 ms (3 T/s, more than a core can) and 2 s on any machine.
        assert 0.1 < row["onnxruntime_ms"] < 2000
        assert row["ours_ms"] is row["openvino_ms"] is row["speedup_to_best"] is None
    printed = capsys.readouterr().out
    assert "onnxruntime " in printed.splitlines()[1]
    assert printed.count("mobilenetv2") == 6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--networks", "vgg16"],
            "is not one of efficientnet-lite0, mobilenetv2, resnet18, resnet50",
        ),
        (["--precisions", "w9a9"], "'w9a9' is not one of fp32, w8a8"),
        (["--threads", "0"], "'0' is not a whole number from 1"),
    ],
)
def test_bad_options_end_in_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_peers.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(line)


def test_int8_network_is_u8_s8_per_channel_and_cached(tmp_path: Path) -> None:
    model = networks.make_network("mobilenetv2")
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    path = quantized(model, x, tmp_path)
    graph = onnx.load(path).graph
    types = {t.name: t.data_type for t in graph.initializer}
    sizes = {t.name: int(np.prod(t.dims)) for t in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 52
    for node in convolutions:
        activation, weight = made_by[node.input[0]], made_by[node.input[1]]
        assert types[activation.input[2]] == onnx.TensorProto.UINT8
        assert types[weight.input[0]] == onnx.TensorProto.INT8
        assert sizes[weight.input[1]] > 1
    written = path.stat().st_mtime_ns
    assert quantized(model, x, tmp_path) == path
    assert path.stat().st_mtime_ns == written
    assert quantized(model, x[:1], tmp_path) != path


def test_peers_compute_the_same(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is an optional peer")
    path = tmp_path / "network.onnx"
    onnx.save(networks.make_network("resnet18"), path)
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224), dtype=np.float32)
    outputs = [peer(path, x, 1).output() for peer in (OnnxRuntime, OpenVino)]
    assert outputs[0].shape == (1, 1000)
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


class _Recorder:
    """Writes its name into a common list at each inference, warm-up included."""

    def __init__(self, name: str, visits: list[str]) -> None:
        self._name, self._visits = name, visits

    def time(self, calls: int, warmup: int) -> NDArray[np.float64]:
        self._visits.extend([self._name] * (calls + warmup))
        return np.full(calls, float(ord(self._name)))

    def output(self) -> NDArray[np.float32]:
        return np.zeros(1, np.float32)


def test_rounds_visit_everyone_forwards_and_backwards() -> None:
    visits: list[str] = []
    times = interleave({name: _Recorder(name, visits) for name in "abc"}, rounds=3, calls=1, warmup=1)
    assert "".join(visits) == "aabbcc" + "ccbbaa" + "aabbcc"
    assert {name: list(values) for name, values in times.items()} == {n: [float(ord(n))] * 3 for n in "abc"}


def test_settle_waits_for_spinning_threads() -> None:
    end = time.monotonic() + 0.15

    def spin() -> None:
        while time.monotonic() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    settle()
    assert time.monotonic() >= end
    thread.join()


@given(seconds, seconds, seconds)
def test_speedup_is_against_the_faster_peer(ours: float, first: float, second: float) -> None:
    times = {"ours": np.array([ours]), "onnxruntime": np.array([first]), "openvino": np.array([second])}
    row = Row.of("n", "w8a8", 1, times)
    assert row.speedup_to_best == pytest.approx(min(first, second) / ours)
    del times["openvino"]
    row = Row.of("n", "w8a8", 1, times)
    assert row.openvino_ms is None
    assert row.speedup_to_best == pytest.approx(first / ours)
    assert list(row.to_json()) == FIELDS


@given(st.lists(seconds, min_size=1, max_size=6))
def test_geometric_mean(values: list[float]) -> None:
    mean = geometric_mean(values)
    assert mean == pytest.approx(np.prod(np.array(values, np.longdouble)) ** (1 / len(values)))
    assert geometric_mean([*values, None]) is None


def test_table_tells_ratios_and_their_means() -> None:
    rows = [Row("a", "fp32", 1, 2.0, 4.0, 1.0, 0.5), Row("b", "fp32", 1, 2.0, 1.0, 4.0, 0.5)]
    lines = table(rows).splitlines()
    assert lines[1].split() == ["a", "fp32", "1", "2.00", "4.00", "1.00", "0.50", "2.00", "0.50"]
    assert lines[3].split() == ["geometric", "mean", "fp32", "1", "1.00", "1.00", "0.50"]
