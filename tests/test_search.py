"""A search from the files to the package: its plan is what it measured, and it goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_networks import network, weights
from search_files import OPTIONS, SURE, TEACHER, classifier, losses_of, make_files, run
from servers import serving, start
from small_networks import node

from tvm_mpq import cli
from tvm_mpq.cli.search_tables import search_lines
from tvm_mpq.compiler import compile_model
from tvm_mpq.cost.modelled import model_costs
from tvm_mpq.cpu import cpu_name
from tvm_mpq.files import sha256
from tvm_mpq.frontend import import_onnx
from tvm_mpq.plan_weights import load_plan
from tvm_mpq.precision import Precision
from tvm_mpq.runtime.package import Package
from tvm_mpq.sample import calibration_arrays, model_path
from tvm_mpq.search.goal import LATENCY, STORAGE, Goal, Limit
from tvm_mpq.search.journal import Journal
from tvm_mpq.search.model import search_model
from tvm_mpq.search.result import SearchResult
from tvm_mpq.sensitivity.table import SensitivityTable
from tvm_mpq.target import load_target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def searched(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    """A folder with the plan of a search under a limit on storage, and its result."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, run(files, folder)


def test_the_package_of_the_plan_is_what_was_measured(
    files: Path, searched: tuple[Path, SearchResult]
) -> None:
    folder, result = searched
    model = files / "net.onnx"
    plan, chosen = load_plan(folder / "plan.json")
    assert chosen is not None
    package = compile_model(model, plan=plan, weights=chosen, baseline=False)
    for name, change in (("evaluation", result.plan.evaluation), ("selection", result.selection)):
        found = losses_of(package, model, files / f"{name}.npz")
        assert float(found.losses.mean()) == change.loss
        assert found.accuracy == change.accuracy
    # The very samples, as the journal has them.
    (key,) = {json.loads(line)["key"] for line in (folder / "plan.journal").read_text().splitlines()[:1]}
    known = Journal.open(folder / "plan.journal", key).known
    text = " ".join(str(plan[name]) for name in plan)
    np.testing.assert_array_equal(
        losses_of(package, model, files / "selection.npz").losses, known[text].losses
    )
    storage = package.metadata.storage
    assert storage.weights == result.plan.storage <= 0.2 * storage.weights_fp32


def test_the_report_compares_with_what_users_would_compile(
    files: Path, searched: tuple[Path, SearchResult]
) -> None:
    _, result = searched
    rows = {row.name: row for row in result.rows}
    model, data = files / "net.onnx", files / "evaluation.npz"
    fp32 = compile_model(model, precision="fp32", baseline=False)
    assert rows["fp32"].evaluation.loss == float(losses_of(fp32, model, data).losses.mean())
    assert rows["fp32"].evaluation.delta == 0.0
    assert rows["fp32"].storage == fp32.metadata.storage.weights_fp32
    eight = compile_model(model, calibration=files / "calibration.npz", baseline=False)
    row = rows["w8a8, nearest"]
    assert row.evaluation.loss == float(losses_of(eight, model, data).losses.mean())
    assert abs(row.storage - eight.metadata.storage.weights) < 100


def test_the_scale_of_the_output_is_chosen_by_the_loss(searched: tuple[Path, SearchResult]) -> None:
    """The labels are those of a network 6 times less sure."""
    folder, result = searched
    (factor,) = result.output_scale.values()
    assert factor == pytest.approx(TEACHER / SURE, rel=0.6)
    scaled = next(row for row in result.rows if row.name == "fp32 scaled")
    assert scaled.evaluation.high < 0
    assert {"front 1", "squared gradients 1", "uniform w5a8"} <= {row.name for row in result.front}
    chosen = load_plan(folder / "plan.json")[1]
    assert chosen is not None
    assert chosen.scales == result.output_scale == {"logits": factor}


def test_a_search_that_is_run_again_measures_nothing_and_finds_the_same(
    files: Path, searched: tuple[Path, SearchResult]
) -> None:
    folder, result = searched
    kept = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (folder / "cache").iterdir()}
    before = {path.name: path.read_bytes() for path in (*written(folder), folder / "plan.journal")}
    assert len(result.tried) <= OPTIONS.evaluations
    again = run(files, folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (folder / "cache").iterdir()} == kept
    assert replace(again, seconds={}) == replace(result, seconds={})


def written(folder: Path) -> list[Path]:
    """The plan and its weights."""
    return [folder / "plan.json", *folder.glob("plan.*.weights.npz")]


def arguments(files: Path, folder: Path, *more: str) -> list[str]:
    chosen = {
        "--calibration": files / "calibration.npz",
        "--selection": files / "selection.npz",
        "--evaluation": files / "evaluation.npz",
        "--costs": files / "costs.json",
        "--precisions": "w8a8,w5a8,w3a8",
        "--cache": folder / "cache",
        "--output": folder / "plan.json",
        "--max-latency": "10x",
    }
    given = {option: value for option, value in chosen.items() if option not in more}
    return ["search", str(files / "net.onnx"), *(str(v) for pair in given.items() for v in pair), *more]


def point_of(line: str) -> str:
    return json.loads(line)["plan"]


def test_a_killed_process_leaves_a_plan_and_ends_where_an_undisturbed_one_does(
    files: Path, searched: tuple[Path, SearchResult], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tvm_mpq"]
    command += arguments(files, tmp_path, "--max-storage", "0.2x", "--evaluations", "8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    journal = tmp_path / "plan.journal"
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + 120
            while time.monotonic() < until and process.poll() is None:
                if journal.exists() and journal.read_text().count('"plan"') >= 3:
                    break
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was still running"
    plan, chosen = load_plan(tmp_path / "plan.json")
    assert chosen is not None
    compile_model(files / "net.onnx", plan=plan, weights=chosen, baseline=False)
    measured = {
        json.loads(line)["plan"] for line in journal.read_text().splitlines()[1:] if line.endswith("}")
    }
    assert cli.main(command[3:]) == 0
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:] if line.endswith("}")]
    plans = [line["plan"] for line in lines]
    assert len(plans) == len(set(plans)), "none was measured twice"
    assert measured <= set(plans)
    # The same seed, too.
    for path, expected in zip(written(tmp_path), written(searched[0]), strict=True):
        assert path.name == expected.name
        assert path.read_bytes() == expected.read_bytes()
    assert plans == [point_of(line) for line in (searched[0] / "plan.journal").read_text().splitlines()[2::2]]


@pytest.fixture
def fails(files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the command line, which must fail in one line and write no plan."""

    def call(*more: str, command: list[str] | None = None) -> str:
        capfd.readouterr()
        assert cli.main(command or arguments(files, tmp_path, *more)) == 2
        out, err = capfd.readouterr()
        assert out == ""
        *_, last = err.splitlines()
        assert last.startswith("error: ")
        assert err.count("error: ") == 1
        assert not (tmp_path / "plan.json").exists()
        return last.removeprefix("error: ")

    return call


def test_goals_and_samples_that_do_not_do_are_one_line(fails, files: Path, tmp_path: Path) -> None:
    assert "cannot minimize 'speed'" in fails("--minimize", "speed")
    assert "needs a limit on the loss" in fails("--minimize", "latency")
    assert "needs a limit on the loss" in fails("--minimize", "storage", "--max-storage", "0.2x")
    assert "--max-storage needs a multiple" in fails("--max-storage", "small")
    assert "--max-latency needs a multiple" in fails("--max-latency", "1MB")
    assert "unknown precision 'w9a8'" in fails("--precisions", "w9a8")
    assert "unknown loss" in fails("--loss", "accuracy")
    assert "there is no data at" in fails("--selection", str(tmp_path / "none.npz"))
    unlabelled = str(files / "unlabelled.npz")
    for option in ("--calibration", "--selection", "--evaluation"):
        assert "needs labels" in fails(option, unlabelled)
    other = tmp_path / "other.onnx"
    onnx.save(classifier(2.0), other)
    command = arguments(files, tmp_path)
    command[1] = str(other)
    assert "the cost table is of another network" in fails(command=command)


def test_storage_that_no_plan_meets_gives_the_nearest_plan(
    files: Path, searched: tuple[Path, SearchResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max-storage", "0.01x", "--evaluations", "4", "--json", str(tmp_path / "r.json")]
    more += ["--cache", str(searched[0] / "cache")]
    assert cli.main(arguments(files, tmp_path, *more)) == 0
    assert "NO PLAN MEETS THE LIMIT ON STORAGE" in capsys.readouterr().out
    plan, chosen = load_plan(tmp_path / "plan.json")
    assert chosen is not None
    assert {str(plan[name]) for name in ("stem", "dw", "project", "logits")} == {"w3a8"}
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["binding"] == [STORAGE]
    assert len(found["tried"]) <= 4


def test_costs_are_measured_on_a_device(fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    constants = {"w": weights(32, 16, seed=1), "v": weights(5, 32, seed=2)}
    nodes = [node("Gemm", "x w", "a", transB=1), node("Relu", "a", "b"), node("Gemm", "b v", "y", transB=1)]
    onnx.save(network(nodes, {"x": [8, 16]}, ["y"], constants), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=rng.integers(0, 5, 96))
    command = ["search", str(tmp_path / "net.onnx"), "--calibration", str(tmp_path / "data.npz")]
    command += ["--output", str(tmp_path / "plan.json"), "--json", str(tmp_path / "r.json")]
    command += ["--precisions", "w8a8,w4a8", "--max-storage", "0.3x", "--max-latency", "50x"]
    command += ["--evaluations", "3", "--cache", str(tmp_path / "cache")]
    with serving([start()]) as (server,):
        command += ["--rpc", str(server.address)]
        assert "give --costs or a device" in fails(command=[*command, "--costs", str(tmp_path / "none.json")])
        assert cli.main(command) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["latency_kind"], found["latency_cpu"]) == ("measured", cpu_name())
    assert all(0 < row["latency"] < 1 for row in found["rows"])
    assert found["rows"][-1]["storage"] <= 0.3 * found["rows"][0]["storage"]
    # The same with the device gone, and no kernel's time known.
    (tmp_path / "plan.json").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    address = str(server.address)
    assert fails(command=command) == f"cannot reach the device {address}: Connection refused"


def test_compile_with_a_limit_searches_and_compiles(
    files: Path, tmp_path: Path, fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The costs that it measures are for this network only.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Each candidate is built and measured.
    monkeypatch.setattr("tvm_mpq.cli.compile.DEFAULT_CANDIDATES", "w8a8,w4a8")
    package = tmp_path / "m.tar"
    command = ["compile", str(files / "net.onnx"), "--output", str(package), "--no-baseline"]
    samples = ["--calibration", str(files / "calibration.npz"), "--cache", str(tmp_path / "cache")]
    limit = ["--max-storage", "0.3x", "--max-latency", "50x"]
    assert "leave out --plan" in fails(command=[*command, *samples, *limit, "--plan", "p.json"])
    assert "leave out --plan" in fails(command=[*command, *samples, *limit, "--precision", "w8a8"])
    assert "a search needs samples" in fails(command=[*command, *limit])
    assert "needs a limit on the loss" in fails(command=[*command, *samples, "--minimize", "storage"])
    assert not package.exists()
    code = cli.main([*command, *samples, *limit, "--evaluations", "3"])
    assert code == 0
    plan = tmp_path / "m.plan.json"
    assert load_plan(plan)[1] is not None
    storage = Package.load(package).metadata.storage
    assert storage.weights <= 0.3 * storage.weights_fp32
    assert Package.load(package).plan == load_plan(plan)[0]


def test_the_sample_network_keeps_its_limit_and_its_losses(tmp_path: Path) -> None:
    """Without an analysis, which takes most of the time of a network this small."""
    mod, model = import_onnx(model_path()), model_path()
    images, labels = calibration_arrays()
    for name, first, count in (("c", 0, 32), ("s", 100, 48), ("e", 200, 24)):
        part = slice(first, first + count)
        np.savez(tmp_path / f"{name}.npz", image=images[part], labels=labels[part])
    digest = sha256(model.read_bytes())
    precisions = tuple(map(Precision.parse, ("w8a8", "w5a8")))
    result = search_model(
        model,
        tmp_path / "c.npz",
        selection=tmp_path / "s.npz",
        evaluation=tmp_path / "e.npz",
        goal=Goal(max_storage=Limit(0.2, True)),
        output=tmp_path / "plan.json",
        options=replace(OPTIONS, precisions=precisions, evaluations=3, front=0, relinearize=False),
        sensitivity_table=SensitivityTable(digest, "", "cross-entropy", 0.0, (), {}),
        costs=model_costs(mod, load_target("x86-64-v3"), precisions, model_sha256=digest),
    )
    plan, chosen = load_plan(tmp_path / "plan.json")
    package = compile_model(model, plan=plan, weights=chosen, baseline=False)
    found = losses_of(package, model, tmp_path / "e.npz")
    assert float(found.losses.mean()) == result.plan.evaluation.loss
    storage = package.metadata.storage
    assert storage.weights == result.plan.storage <= 0.2 * storage.weights_fp32
    assert result.binding == ()


def test_a_limit_that_nobody_gave_is_said_to_be_one(searched: tuple[Path, SearchResult]) -> None:
    bound = replace(searched[1], binding=(LATENCY,))
    assert not any("Nobody gave" in line for line in search_lines(bound))
    free = replace(bound, goal={**bound.goal, "max_latency": None})
    assert any("Nobody gave a limit on latency" in line for line in search_lines(free))
