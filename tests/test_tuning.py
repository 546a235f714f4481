"""Tuning: the search on a machine of which all is known, and the command on this one, killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvm_mpq import cli
from tvm_mpq.cpu import cpu_name
from tvm_mpq.errors import MpqError
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.kernels.tiles import ConvolutionTile
from tvm_mpq.runtime.package import Package
from tvm_mpq.target import host_target, load_target, missing_features, target_names
from tvm_mpq.tuning.log import TuningLog, log_file, log_folder
from tvm_mpq.tuning.process import Worker, WorkerError
from tvm_mpq.tuning.runner import LocalRunner, Timing
from tvm_mpq.tuning.search import BATCH, clearly_faster
from tvm_mpq.tuning.tune import tune_model
from tvm_mpq.tuning.tuner import Tuner, allot

LARGE = KernelSpec("conv2d", ConvolutionShape(1, 28, 28, 64, 64), "uint8", Output("uint8"), "avx2")
SMALL = KernelSpec("conv2d", ConvolutionShape(1, 7, 7, 64, 64), "float32", Output("float32"), "avx2")


class KnownMachine:
    """A runner on which every tile takes the seconds that a function says; None is a failure."""

    cpu = "known"

    def __init__(self, seconds: Callable[[KernelSpec, Tile], float | None]) -> None:
        self.seconds = seconds
        self.measured: list[tuple[KernelSpec, Tile]] = []

    def measure(self, jobs: Sequence[tuple[KernelSpec, Tile]], rounds: int) -> list[Timing]:
        self.measured += jobs
        found = [self.seconds(*job) for job in jobs]
        return [Timing((value,) * rounds) if value else Timing(error="it failed") for value in found]

    def __enter__(self) -> KnownMachine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def by_unrolling(spec: KernelSpec, tile: Tile) -> float | None:
    """Eight steps are fastest, tiles of one column block fail, and the large kernel takes ten times as long."""
    if tile.blocks == 1 and tile != spec.faster().default_tile():
        return None
    return (1e-3 if spec == LARGE else 1e-4) * (1 + 0.1 * abs(8 - tile.unroll) + 0.01 * tile.column_tiles)


def tuner(folder: Path, machine: KnownMachine, **options: object) -> Tuner:
    return Tuner(machine, folder, say=lambda _: None, **options)


def test_the_search_finds_a_fast_tile_the_largest_share_first(tmp_path: Path) -> None:
    machine = KnownMachine(by_unrolling)
    result = tuner(tmp_path, machine).tune({"plan": {SMALL: 2, LARGE: 1}}, 200)
    for kernel, spec in zip(result.kernels, (SMALL, LARGE), strict=True):
        best = min(filter(None, (by_unrolling(spec, tile) for tile in spec.space())))
        assert kernel.tuned
        assert kernel.seconds <= 1.05 * best
        assert kernel.default_seconds == pytest.approx(by_unrolling(spec, spec.space()[0]), rel=1e-3)
    searched = [spec for spec, _ in machine.measured[2:]]
    assert searched == sorted(searched, key=lambda spec: spec != LARGE)
    default, tuned = result.totals("plan")
    assert default == pytest.approx(sum(k.count * k.default_seconds for k in result.kernels))
    assert tuned < default
    chosen = TuningLog.read(tmp_path).best(1)
    assert all(
        by_unrolling(spec, chosen[spec]) == pytest.approx(k.seconds, rel=1e-3)
        for spec, k in zip((SMALL, LARGE), result.kernels, strict=True)
    )


def test_a_search_stops_where_nothing_improves_and_keeps_the_default(tmp_path: Path) -> None:
    machine = KnownMachine(lambda spec, tile: 1e-3 if tile == spec.space()[0] else 1.5e-3)
    result = tuner(tmp_path, machine).tune({"plan": {LARGE: 1}}, 1000)
    assert result.kernels[0].trials == 1 + 2 * (BATCH - 1)
    assert result.kernels[0].tuned
    assert TuningLog.read(tmp_path).best(1) == {LARGE: LARGE.space()[0]}


def test_a_gain_within_the_noise_is_no_gain() -> None:
    default = Timing((1.0,) * 10)
    assert not clearly_faster(Timing((0.985,) * 10), default)
    assert clearly_faster(Timing((0.97,) * 10), default)
    assert not clearly_faster(Timing((0.9,) * 7 + (1.1,) * 3), default)


def test_a_default_that_fails_is_an_error_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the default tile of conv2d_w8a8_1x28x28x64_64 failed: it failed"):
        tuner(tmp_path, KnownMachine(lambda _spec, _tile: None)).tune({"plan": {LARGE: 1}}, 20)


def test_a_second_run_measures_nothing_again_and_a_shared_kernel_is_not_tuned_twice(tmp_path: Path) -> None:
    first = KnownMachine(by_unrolling)
    tuner(tmp_path, first).tune({"plan": {LARGE: 1}}, 40)
    again = KnownMachine(by_unrolling)
    tuner(tmp_path, again).tune({"plan": {LARGE: 1}}, 40)
    assert again.measured == []
    shared = KnownMachine(by_unrolling)
    result = tuner(tmp_path, shared).tune({"plan": {LARGE: 3, SMALL: 1}}, 40)
    assert {spec for spec, _ in shared.measured} == {SMALL}
    assert all(kernel.tuned for kernel in result.kernels)


def test_an_interrupted_search_goes_on_with_the_trials_that_are_left(tmp_path: Path) -> None:
    first = KnownMachine(by_unrolling)

    class StopError(Exception):
        pass

    def until_the_third_batch(spec: KernelSpec, tile: Tile) -> float | None:
        if len(first.measured) > 1 + 3 * BATCH:
            raise StopError
        return by_unrolling(spec, tile)

    first.seconds = until_the_third_batch
    with pytest.raises(StopError):
        tuner(tmp_path, first).tune({"plan": {LARGE: 1}}, 80)
    before = TuningLog.read(tmp_path).records
    known = {record.tile for record in before}
    assert len(known) == 1 + 3 * (BATCH - 1)
    second = KnownMachine(by_unrolling)
    tuner(tmp_path, second).tune({"plan": {LARGE: 1}}, 80)
    records = [r for r in TuningLog.read(tmp_path).records if r.stage == "search"]
    later = {record.tile for record in records[len(before) :]} - {LARGE.space()[0]}
    assert not later & known
    assert len({record.tile for record in records}) <= 80


@pytest.mark.parametrize("trials", [1, 2, BATCH, 17])
def test_few_trials_are_not_exceeded(tmp_path: Path, trials: int) -> None:
    result = tuner(tmp_path, KnownMachine(by_unrolling)).tune({"plan": {LARGE: 1}}, trials)
    assert 1 <= result.kernels[0].trials <= max(trials, BATCH)


def test_trials_are_half_equal_and_half_by_share() -> None:
    given = allot({LARGE: 3.0, SMALL: 1.0}, 400)
    assert given == {LARGE: 250, SMALL: 150}
    assert allot({LARGE: 1.0, SMALL: 0.0}, 10) == {LARGE: BATCH, SMALL: BATCH}


def test_a_tile_that_fails_is_lost_alone() -> None:
    target = host_target()
    spec = dataclasses.replace(SMALL, instruction=target.instruction)
    default, *others = spec.space()
    assert isinstance(default, ConvolutionTile)
    bad = dataclasses.replace(default, unroll=0)
    with LocalRunner(target, 1) as runner:
        timings = runner.measure([(spec, tile) for tile in (default, others[0], bad, others[-1])], 3)
    assert [bool(timing.median) for timing in timings] == [True, True, False, True]
    assert [len(timing.seconds) for timing in timings[:1]] == [3]
    assert timings[2].error


def test_a_worker_that_hangs_or_dies_or_fails_says_so_and_is_started_again() -> None:
    worker = Worker()
    missing = ("measure", ["no.so"], [[[[1], "float32"], [[1], "float32"]]], 1, 1, 0)
    try:
        with pytest.raises(WorkerError, match="it took more than"):
            worker.call(missing, 0.05)
        with pytest.raises(WorkerError, match=r"no\.so"):
            worker.call(missing, 60)
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="the process died"):
            worker.call(missing, 60)
        with pytest.raises(WorkerError, match=r"no\.so"):
            worker.call(missing, 60)
    finally:
        worker.close()
    assert worker.process is None


def one_convolution(path: Path) -> Path:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.normal(size=(16, 8, 3, 3)).astype(np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", kernel_shape=[3, 3], pads=[1] * 4)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 12, 12])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 12, 12])
    graph = helper.make_graph([node], "one", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_a_killed_run_is_resumed_and_compilation_uses_what_it_found(tmp_path: Path, capfd) -> None:
    model, logs = one_convolution(tmp_path / "one.onnx"), tmp_path / "logs"
    command = ["tune", str(model), "--trials", "32", "--tuning-logs", str(logs), "--precision", "fp32"]
    path = log_file(log_folder(logs, host_target()), cpu_name())
    process = subprocess.Popen([sys.executable, "-m", "tvm_mpq", *command], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 100
        # The default tile's line, and a batch.
        while not path.exists() or path.read_bytes().count(b"\n") < 1 + BATCH:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = TuningLog.read(path.parent)
    assert len(before.records) >= BATCH
    assert cli.main([*command, "--json", str(tmp_path / "tuned.json")]) == 0
    assert "fp32: all calls" in capfd.readouterr().out
    after = TuningLog.read(path.parent)
    assert after.records[: len(before.records)] == before.records
    (kernel,) = json.loads((tmp_path / "tuned.json").read_text())["kernels"]
    assert kernel["tuned"]
    assert kernel["trials"] == len({record.tile for record in after.records}) <= 32

    package = tmp_path / "one.tar"
    arguments = ["compile", str(model), "--precision", "fp32", "--output", str(package)]
    assert cli.main([*arguments, "--tuning-logs", str(logs)]) == 0
    (tile,) = after.best(1).values()
    assert tile in next(iter(after.best(1))).space()
    tiles = [call.tile for call in Package.load(package).metadata.calls if call.operator == "conv"]
    assert "tuned" in tiles
    assert "default" not in tiles
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli.main([*arguments, "--tuning-logs", str(empty)]) == 0
    assert "default" in [call.tile for call in Package.load(package).metadata.calls]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "at least 1"),
        (["--threads", "1000"], "cannot run with 1000 threads"),
        (["--precision", "w9a9"], "unknown precision"),
        (["--precision", "fp32", "--plan", "p.json"], "not both"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capfd, arguments: list[str], message: str) -> None:
    model = one_convolution(tmp_path / "one.onnx")
    assert cli.main(["tune", str(model), "--tuning-logs", str(tmp_path / "logs"), *arguments]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_a_target_that_this_machine_cannot_run_is_not_measured(tmp_path: Path) -> None:
    others = [name for name in target_names() if missing_features(load_target(name))]
    if not others:
        pytest.skip("this machine runs every target")
    with pytest.raises(MpqError, match="cannot measure code for the target"):
        tune_model(one_convolution(tmp_path / "one.onnx"), target=others[0], logs=tmp_path)
