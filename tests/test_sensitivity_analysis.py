"""The analysis against the pipeline's own kernels, operator by operator, and the command as a user meets it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_networks import network, weights
from small_networks import branches, kernel, node, prepared, runner

from tvm_mpq import cli
from tvm_mpq.errors import MpqError
from tvm_mpq.precision import FP32, Precision, parse_precisions
from tvm_mpq.sensitivity.cache import SampleCache
from tvm_mpq.sensitivity.collection import Collected
from tvm_mpq.sensitivity.comparison import Comparison, Places
from tvm_mpq.sensitivity.gradients import GradientFunction
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.sensitivity.model import analyze_model
from tvm_mpq.sensitivity.statistics import curvature_entry, drawn_labels, entry
from tvm_mpq.sensitivity.table import SensitivityTable
from tvm_mpq.target import host_target
from tvm_mpq.transform.pipeline import Pipeline

SAMPLES = 22
W4A8, W8A8 = Precision.parse("w4a8"), Precision.parse("w8a8")


def test_products_are_those_of_the_pipelines_outputs_and_relaxs_gradients() -> None:
    made = prepared(branches)
    loss = relax_loss("cross-entropy", probabilities=True)
    candidates = {"stem": (W8A8, W4A8), "residual": (W4A8,), "logits": (W4A8,)}
    comparison = Comparison(made.mod, loss, made.ranges, candidates, host_target(), threads=1)
    feeds = {**made.feeds(), "labels": np.array([3])}
    found = comparison(feeds)
    losses, gradients = GradientFunction(made.mod, loss, host_target(), list(candidates), threads=1)(feeds)
    np.testing.assert_array_equal(found.losses, losses)

    def outputs(plan: dict[str, str]) -> dict[str, np.ndarray]:
        pipeline = Pipeline(made.plan("fp32", plan), made.ranges, host_target().instruction, observe=True)
        lowered = pipeline.lower(pipeline.annotate(made.mod))
        values = runner(lowered, host_target())(*made.feeds().values())
        return dict(zip(made.names, values, strict=True))

    def like(held: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Pixels [N·H·W, C] in ONNX's order."""
        if len(shape) != 4:
            return held
        n, c, h, w = shape
        return held.reshape(n, h, w, c).transpose(0, 3, 1, 2)

    exact = outputs({})
    for name in ("stem", "logits"):
        noisy = outputs({name: "w4a8"})
        g = gradients[f"{name}:output"].astype(np.float64)
        delta = like(noisy[name].astype(np.float64) - exact[name], g.shape)
        first, square = found.values[comparison.places.total[name, "w4a8"], 0]
        assert first == pytest.approx((delta * g).sum(), rel=1e-4, abs=1e-7)
        assert square == pytest.approx((delta**2).sum(), rel=1e-4)
    assert ("residual", "w4a8") not in comparison.places.total
    rounding = found.values[comparison.places.by_input["residual"], 0, 1]
    elements = gradients["residual:output"].size
    low, high = made.ranges.operators["residual"]
    assert 0.0 < rounding < elements * ((high - low) / 255) ** 2


def test_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    total, by_input = rng.standard_normal((2, 50, 2)) ** 2
    found = entry(total, by_input)
    assert found.input_part + found.weight_part == pytest.approx(found.mean)
    assert found.second_order == pytest.approx(0.5 * (total[:, 0] ** 2).mean())
    assert found.stderr == pytest.approx(total[:, 0].std(ddof=1) / math.sqrt(50))
    stationary = curvature_entry(total, by_input)
    assert stationary.mean == stationary.second_order == pytest.approx(found.second_order)
    assert math.isinf(entry(total[:1], None).stderr)


def test_labels_are_drawn_as_often_as_they_are_probable() -> None:
    logits = np.broadcast_to(np.log([[0.5, 0.2, 0.3]]), (20000, 3)).astype(np.float32)
    drawn = np.bincount(drawn_labels(logits, False, 0)) / 20000
    np.testing.assert_allclose(drawn, [0.5, 0.2, 0.3], atol=0.02)
    np.testing.assert_array_equal(drawn_labels(np.eye(3, dtype=np.float32), True, 1), [0, 1, 2])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small classifier of batches of 4, and samples for it."""
    folder = tmp_path_factory.mktemp("files")
    nodes = [
        node("Conv", "x w1 b1", "stem", strides=[2, 2]),
        node("Relu", "stem", "stem_r"),
        node("GlobalAveragePool", "stem_r", "gap"),
        node("Flatten", "gap", "flat"),
        node("Gemm", "flat w2", "logits"),
    ]
    constants = {"w1": kernel(8, 3, 3, 3, 1), "b1": weights(8, seed=2), "w2": weights(8, 5, seed=3)}
    onnx.save(network(nodes, {"x": [4, 3, 9, 9]}, ["logits"], constants), folder / "m.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, 3, 9, 9)).astype(np.float32)
    np.savez(folder / "d.npz", x=x, labels=rng.integers(0, 5, SAMPLES))
    return folder / "m.onnx", folder / "d.npz"


def test_the_command_writes_a_table_and_an_interrupted_run_goes_on(
    files: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["analyze", str(files[0]), "--calibration", str(files[1]), "--precisions", "w8a8,w3a8"]
    arguments += ["--samples", str(SAMPLES), "--cache", "cache"]
    calls = 0
    run = Comparison.__call__

    def stop_at_five(self, feeds):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return run(self, feeds)

    monkeypatch.setattr("tvm_mpq.sensitivity.cache._SECONDS", 0.0)
    monkeypatch.setattr(Comparison, "__call__", stop_at_five)
    assert cli.main([*arguments, "--output", "s.json"]) == 130
    assert not Path("s.json").exists()
    assert cli.main([*arguments, "--output", "s.json"]) == 0
    resumed, calls_in_all = Path("s.json").read_text(), calls
    assert cli.main([*arguments, "--output", "again.json"]) == 0
    assert Path("again.json").read_text() == resumed
    assert calls == calls_in_all

    out = capfd.readouterr().out
    assert "sum over operators" in out
    table = SensitivityTable.load("s.json")
    # 22 samples are 6 batches of 4, of which the fifth call was interrupted.
    assert calls == 7
    weighted = [operator.name for operator in table.operators if operator.weights]
    assert weighted
    for name in weighted:
        assert table.entries[name, "w3a8"].noise > table.entries[name, "w8a8"].noise
        assert table.entries[name, "w3a8"].input_part == table.entries[name, "w8a8"].input_part
    assert json.loads(resumed)["schema_version"] == 1


def test_a_damaged_cache_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "k.npz").write_bytes(b"PK no zip")
    cache = SampleCache(tmp_path, "k")
    assert Collected.load(cache).samples == 0
    places = Places({("a", "w8a8"): 1}, {"a": 0})
    cache.keep([np.ones(3)], [np.ones((2, 3, 2))], places.to_json(), last=True)
    found = Collected.load(cache)
    assert found.samples == 3
    assert found.places == places
    assert found.arrays()[1].shape == (2, 3, 2)


def test_kl_needs_no_labels_and_is_never_negative(files: tuple[Path, Path]) -> None:
    table = analyze_model(*files, precisions=(W4A8,), loss="kl", samples=8, measure=True)
    assert table.base_loss == 0.0
    assert all(found.mean == found.second_order >= 0.0 for found in table.entries.values())
    assert any(found.mean > 0.0 for found in table.entries.values())
    # Measured is the divergence itself, of which the estimate knows the curvature at zero.
    for found in table.entries.values():
        assert found.measured is not None
        assert 0.0 <= found.measured < 10 * found.mean + 1e-6


def test_a_network_that_ends_in_a_softmax_has_the_loss_of_its_logits(tmp_path: Path) -> None:
    nodes, constants = [node("MatMul", "x w", "logits")], {"w": weights(6, 4)}
    losses = []
    for name, output in (("logits", []), ("shares", [node("Softmax", "logits", "shares")])):
        onnx.save(network(nodes + output, {"x": [1, 6]}, [name], constants), tmp_path / "net.onnx")
        x, labels = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32), np.arange(8) % 4
        np.savez(tmp_path / "data.npz", x=x, labels=labels)
        table = analyze_model(tmp_path / "net.onnx", tmp_path / "data.npz", precisions=(W4A8,), samples=8)
        losses.append(table.base_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_cannot_be_a_candidate_is_said(files: tuple[Path, Path]) -> None:
    with pytest.raises(MpqError, match="named twice"):
        parse_precisions("w8a8, w4a8,w8a8")
    with pytest.raises(MpqError, match="fp32 is what the others are compared with"):
        analyze_model(*files, precisions=(FP32, W8A8))
