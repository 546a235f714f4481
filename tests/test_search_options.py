"""Searches with other grids, roundings and precisions: the package is still what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from search_files import OPTIONS, SMALL, losses_of, make_files, run

from tvm_mpq import cli
from tvm_mpq.calibration import calibrate
from tvm_mpq.compiler import compile_model
from tvm_mpq.dataset import Dataset, open_dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.plan_weights import load_plan
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session
from tvm_mpq.search.candidate_store import load_candidates
from tvm_mpq.search.candidates import Rounding, candidate_keys, candidate_statistics
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.search.goal import Goal, Limit
from tvm_mpq.search.loss_led import led_by_loss, stepped
from tvm_mpq.target import host_target

MIXED = tuple(map(Precision.parse, ("w8a8", "w4a8", "fp16", "w4g8a32")))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("files"), (*OPTIONS.precisions, *MIXED))


def test_equalized_channels_and_ranges_by_the_loss_reach_the_package(files: Path, tmp_path: Path) -> None:
    options = replace(
        OPTIONS, observer="loss", equalize=True, rounding=Rounding("loss-aware"), evaluations=2, front=0
    )
    result = run(files, tmp_path, SMALL, options)
    plan, chosen = load_plan(tmp_path / "plan.json")
    assert chosen is not None
    assert chosen.factors
    assert result.step is not None
    assert chosen.origin["observer"] == "loss"
    package = compile_model(files / "net.onnx", plan=plan, weights=chosen, baseline=False)
    found = losses_of(package, files / "net.onnx", files / "evaluation.npz")
    assert float(found.losses.mean()) == result.plan.evaluation.loss
    with pytest.raises(MpqError, match="weights of its own: leave out --rounding and --equalize"):
        compile_model(files / "net.onnx", plan=plan, weights=chosen, equalize=True, baseline=False)
    # What was said of the step is kept with the rounded weights.
    (kept,) = (tmp_path / "cache").glob("rounded-*.npz")
    found = load_candidates(tmp_path / "cache", kept.stem.removeprefix("rounded-"))
    assert found is not None
    assert found.step == result.step


def test_floats_of_16_bits_and_weights_alone_are_choices(files: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, precisions=MIXED, evaluations=6, front=0, output_scale=False)
    goal = Goal(max_storage=Limit(0.4, True), max_latency=Limit(100.0, True))
    result = run(files, tmp_path, goal, options)
    tried = {name for point in result.tried for name in point.precisions}
    assert {"fp16", "w4g8a32", "w8a8"} <= tried
    plan, chosen = load_plan(tmp_path / "plan.json")
    assert chosen is not None
    package = compile_model(files / "net.onnx", plan=plan, weights=chosen, baseline=False)
    found = losses_of(package, files / "net.onnx", files / "evaluation.npz")
    # Floats are summed in another order by the package's kernels.
    assert float(found.losses.mean()) == pytest.approx(result.plan.evaluation.loss, abs=1e-5)
    assert package.metadata.storage.weights == result.plan.storage


def test_weights_alone_are_rounded_by_their_inputs(files: Path) -> None:
    model, data = files / "net.onnx", files / "evaluation.npz"
    fp32 = losses_of(compile_model(model, precision="fp32", baseline=False), model, data).losses

    def rounded(rounding: Rounding | None) -> Package:
        return compile_model(
            model,
            precision="w3a32",
            calibration=files / "calibration.npz",
            rounding=rounding,
            baseline=False,
        )

    def error(package: Package) -> float:
        return float(np.square(losses_of(package, model, data).losses - fp32).mean())

    by_moments = rounded(Rounding())
    assert error(by_moments) < 0.7 * error(rounded(Rounding("nearest", correct_biases=False)))
    # Below 8 bits that is how weights are rounded where nothing else is asked for.
    assert rounded(None).weights == by_moments.weights


def test_a_step_is_taken_only_where_other_samples_confirm_it(files: Path) -> None:
    mod = import_onnx(files / "net.onnx")
    data = open_dataset(files / "selection.npz", io_specs(mod)[0])
    keys = candidate_keys(mod, OPTIONS.precisions)
    ranges = calibrate(mod, data, "minmax", host_target())
    statistics = candidate_statistics(mod, keys, ranges, data, host_target())
    loss = get_loss("cross-entropy")
    # The network is six times too sure of itself: there is much to gain.
    led = led_by_loss(mod, statistics, data, host_target())
    assert led.length.taken
    assert led.length.change.high < 0.0
    assert led.steps.keys() == statistics.keys()
    # What the network itself predicts leaves nothing to gain.
    package = compile_model(files / "net.onnx", precision="fp32", baseline=False)
    own = own_labels(files, package)
    led = led_by_loss(mod, statistics, own, host_target())
    assert not led.length.taken
    assert not led.steps
    fp32 = PrecisionPlan.uniform([operator.name for operator in operators(mod)], FP32)
    losses = [
        PlanEvaluator(m, ranges, own, loss, host_target()).losses(fp32).losses
        for m in (mod, stepped(mod, led.steps, 1.0))
    ]
    np.testing.assert_array_equal(*losses)


def own_labels(files: Path, package: Package) -> Dataset:
    """The samples for selection with labels drawn from what the network predicts."""
    session, rng = Session(package, 1), np.random.default_rng(1)
    x = np.load(files / "selection.npz")["x"]
    logits = np.concatenate([session.run({"x": x[i : i + 4]})[0] for i in range(0, len(x), 4)])
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    np.savez(files / "own.npz", x=x, labels=labels)
    return open_dataset(files / "own.npz", io_specs(import_onnx(files / "net.onnx"))[0])


def test_only_ranges_by_the_loss_need_its_gradient(files: Path) -> None:
    mod = import_onnx(files / "net.onnx")
    data = open_dataset(files / "selection.npz", io_specs(mod)[0]).take(4)
    assert calibrate(mod, data, "minmax", host_target(), loss="builtins:len").operators
    with pytest.raises(MpqError, match="has no gradient"):
        calibrate(mod, data, "loss", host_target(), loss="builtins:len")


def test_options_that_make_no_sense_are_one_line(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MpqError, match="unknown rounding 'up': use nearest, second-order, loss-aware"):
        Rounding("up")
    for more, said in (
        (["--rounding", "up"], "unknown rounding 'up'"),
        (["--observer", "loss", "--loss", "mse"], "loss"),
        (["--no-correct-biases"], "give --rounding METHOD as well"),
    ):
        arguments = ["compile", str(files / "net.onnx"), "-o", str(tmp_path / "out.tar"), *more]
        assert cli.main([*arguments, "--calibration", str(files / "unlabelled.npz")]) == 2
        errors = capsys.readouterr().err
        assert said in errors
        assert "Traceback" not in errors
