"""The command line as a user meets it: exit codes, the one line on stderr, and files left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_package import BATCH, CLASSES, FEATURES, expected, tiny_package

from tvm_mpq import cli
from tvm_mpq.files import sha256
from tvm_mpq.runtime import harness
from tvm_mpq.runtime.archive import pack
from tvm_mpq.runtime.arrays import load_arrays
from tvm_mpq.runtime.package import Package

KEPT = b"what was here before"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a package, its baseline, inputs and data; the current one."""
    rng = np.random.default_rng(0)
    fp32 = tiny_package(0, 16)
    tiny_package(0).with_baseline("m.fp32.tar", fp32.to_bytes()).save(tmp_path / "m.tar")
    fp32.save(tmp_path / "m.fp32.tar")
    np.savez(tmp_path / "in.npz", x=rng.normal(size=(BATCH, FEATURES)).astype(np.float32))
    x = rng.normal(scale=0.3, size=(9, FEATURES)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=rng.integers(0, CLASSES, 9))
    (tmp_path / "out.json").write_bytes(KEPT)
    (tmp_path / "out.npz").write_bytes(KEPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(folder, capfd):
    """Calls the command line with arguments that must fail, and returns the line it says."""

    def call(*arguments: str) -> str:
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        capfd.readouterr()
        assert cli.main(arguments) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
        return err.removeprefix("error: ").rstrip("\n")

    return call


def module(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command = [sys.executable, "-m", "tvm_mpq", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_help_is_quick_and_names_the_commands():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = module("--help")
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("compile", "run", "benchmark", "targets"))
    assert min(seconds) < 1.5, "TVM takes about a second to import and must not be"


def test_the_command_line_does_not_import_tvm():
    code = "import sys, tvm_mpq.cli; sys.exit('tvm' in sys.modules or 'numpy' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_process_that_fails_ends_with_code_2_and_one_line():
    done = module("targets", "--json", "/nowhere/t.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --json /nowhere/t.json: there is no folder /nowhere\n"


def test_targets_are_listed(folder, capsys):
    assert cli.main(["targets", "--json", "t.json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(Path("t.json").read_text())
    names = [target["name"] for target in found]
    assert names[0] == "host"
    assert all(name in out for name in names)
    assert all(len(line.rstrip()) <= 100 for line in out.splitlines())
    assert found[0]["missing_features"] == []


def test_run_writes_the_outputs(folder, capsys):
    arguments = ["run", "m.tar", "--inputs", "in.npz", "--outputs", "out.npz", "--threads", "1"]
    assert cli.main([*arguments, "--print-time", "--repeat", "5", "--json", "out.json"]) == 0
    y = load_arrays("out.npz")["y"]
    np.testing.assert_allclose(y, expected(load_arrays("in.npz")["x"]), rtol=1e-4)
    assert "latency of 5 runs, 1 thread(s): median" in capsys.readouterr().out
    found = json.loads(Path("out.json").read_text())
    assert found["outputs"] == [{"name": "y", "shape": [BATCH, CLASSES], "dtype": "float32"}]
    assert found["latency_ms"].keys() == {"median", "p90", "min", "threads"}


def test_benchmark_prints_a_table_that_fits_and_writes_json(folder, capsys):
    assert cli.main(["benchmark", "m.tar", "--data", "d.npz", "--json", "out.json", "--repeat", "20"]) == 0
    out = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 100 for line in out.splitlines())
    for word in (
        "latency median",
        "storage weights in the file",
        "storage weights in memory",
        "storage resident",
        "cross-entropy",
        "accuracy",
        "matmul",
    ):
        assert word in out
    found = json.loads(Path("out.json").read_text())
    assert found["baseline"]["latency_ms"]["median"] > 0
    assert found["loss"]["samples"] == 9
    assert found["environment"]["hashes"]["package"] == sha256(Path("m.tar").read_bytes())


def test_benchmark_says_plainly_when_the_package_is_slower(folder, capsys):
    slow = tiny_package(0, 64).with_baseline("m.fp32.tar", tiny_package(0).to_bytes())
    slow.save("m.tar")
    tiny_package(0).save("m.fp32.tar")
    assert cli.main(["benchmark", "m.tar", "--data", "d.npz", "--limit", "2"]) == 0
    assert "SLOWER THAN FP32: the package takes" in capsys.readouterr().out


def test_benchmark_without_its_baseline_says_so(folder, capsys):
    Path("m.fp32.tar").unlink()
    arguments = [
        "benchmark",
        "m.tar",
        "--data",
        "d.npz",
        "--json",
        "out.json",
        "--limit",
        "4",
        "--repeat",
        "3",
    ]
    assert cli.main(arguments) == 0
    reason = "m.fp32.tar is not beside the package; give it with --baseline FILE"
    assert f"No comparison with fp32: {reason}." in capsys.readouterr().out
    found = json.loads(Path("out.json").read_text())
    assert (found["baseline"], found["baseline_reason"]) == (None, reason)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command. (tvm-mpq --help lists commands and options)"),
        (["compyle"], "No such command 'compyle'."),
        (["run", "m.tar"], "Missing option '--inputs'."),
        (["run", "m.tar", "--inputs", "in.npz", "--repeat", "x"], "Invalid value for '--repeat'"),
        (["run", "m.tar", "--inputs", "in.npz", "--speed"], "No such option: --speed"),
    ],
)
def test_wrong_usage_is_one_line(fails, arguments, said):
    assert said in fails(*arguments)


RUN = ["run", "m.tar", "--outputs", "out.npz", "--json", "out.json", "--inputs"]
BENCHMARK = ["benchmark", "m.tar", "--json", "out.json", "--data"]


def test_run_inputs_that_do_not_fit_are_refused(fails):
    ones = np.ones((BATCH, FEATURES), np.float32)
    for arrays, said in (
        ({"z": ones}, "the network has no input 'z'; it has 'x'"),
        ({}, "the input 'x' is missing; the network has 'x'"),
        ({"x": ones[:, 1:]}, "the input 'x' has shape [2, 11]; the package was compiled for [2, 12]"),
        ({"x": ones.astype(np.int64)}, "the input 'x' is int64; the network takes float32"),
        ({"x": np.array(["a"], object)}, "i.npz is not a readable .npz of plain arrays: Object arrays"),
    ):
        np.savez("i.npz", **arrays)
        assert said in fails(*RUN, "i.npz")
    Path("i.npz").write_bytes(Path("in.npz").read_bytes()[:100])
    assert "i.npz is not a readable .npz of plain arrays" in fails(*RUN, "i.npz")
    np.save("i.npy", ones)
    assert fails(*RUN, "i.npy") == "i.npy is a single array; save named ones with numpy.savez"
    assert fails(*RUN, "none.npz") == "there is no file none.npz"


def test_numbers_out_of_range_are_refused(fails):
    most = len(os.sched_getaffinity(0))
    said = f"cannot run with {most + 1} threads: this machine offers 1 to {most}"
    assert fails(*RUN, "in.npz", "--threads", str(most + 1)) == said
    assert fails(*RUN, "in.npz", "--print-time", "--repeat", "0") == "cannot time 0 runs: ask for at least 1"
    assert fails(*BENCHMARK, "d.npz", "--repeat", "0") == "cannot time 0 runs: ask for at least 1"
    assert fails(*BENCHMARK, "d.npz", "--mean", "1,2") == (
        "--mean needs one number or three with commas between, not '1,2'"
    )
    assert "not 'nan'" in fails(*BENCHMARK, "d.npz", "--scale", "nan")


def test_output_files_that_cannot_be_written_are_refused_before_any_work(fails):
    assert fails("benchmark", "m.tar", "--data", "d.npz", "--json", "no/x.json") == (
        "--json no/x.json: there is no folder no"
    )
    assert fails("run", "m.tar", "--inputs", "in.npz", "--outputs", ".") == (
        "--outputs . is a folder; give the name of a file"
    )


def test_packages_that_are_not_whole_are_refused(fails):
    content = Path("m.tar").read_bytes()
    package = Package.load("m.tar")
    target = dataclasses.replace(package.metadata.target, name="znver9", features=("sse4_2", "avx1024"))
    metadata = dataclasses.replace(package.metadata, target=target)
    future = dataclasses.replace(package.metadata, schema_version=5)
    others = {"plan.json": package.plan.to_json().encode(), "model.so": package.library, "weights.bin": b""}
    altered = bytearray(content)
    altered[len(altered) // 2] ^= 255
    for broken, said in (
        (content[:-100], "m.tar is truncated or damaged: copy or compile it again"),
        (bytes(altered), "m.tar "),
        (b"text", "m.tar is damaged or not a tvm_mpq package"),
        (pack({"../evil": b""}), "m.tar holds the unsafe path '../evil': it is not a package tvm_mpq made"),
        (
            dataclasses.replace(package, metadata=metadata).to_bytes(),
            "the package was compiled for target 'znver9' and this machine lacks avx1024; "
            "compile it again with --target host",
        ),
        (
            pack({"metadata.json": future.to_json().encode(), **others}),
            "m.tar has package schema version 5, this tvm_mpq reads 4; install a newer tvm_mpq",
        ),
    ):
        Path("m.tar").write_bytes(broken)
        for arguments in ([*RUN, "in.npz"], [*BENCHMARK, "d.npz"]):
            assert fails(*arguments).startswith(said)
    Path("m.tar").unlink()
    assert fails(*RUN, "in.npz") == "cannot read the package m.tar: No such file or directory"


def test_benchmark_data_and_loss_that_do_not_fit_are_refused(fails):
    data = load_arrays("d.npz")
    assert fails(*BENCHMARK, "none.npz") == "there is no data at none.npz"
    np.savez("b.npz", x=data["x"], labels=data["labels"] + CLASSES)
    assert "label" in fails(*BENCHMARK, "b.npz")
    np.savez("b.npz", x=data["x"])
    assert "needs labels" in fails(*BENCHMARK, "b.npz")
    assert "unknown loss 'crossentropy'" in fails(*BENCHMARK, "d.npz", "--loss", "crossentropy")
    assert "cannot import 'nothing'" in fails(*BENCHMARK, "d.npz", "--loss", "nothing:here")
    tiny_package(3).save("m.fp32.tar")
    assert "m.fp32.tar is not the fp32 package that was compiled with m.tar" in fails(*BENCHMARK, "d.npz")
    assert "cannot read the package gone.tar" in fails(*BENCHMARK, "d.npz", "--baseline", "gone.tar")
    Path("m.fp32.tar").unlink()
    assert "--loss kl compares with the fp32 package, which is not there" in fails(
        *BENCHMARK, "d.npz", "--loss", "kl"
    )


def test_an_interruption_leaves_files_alone(folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "time_in_turns", interrupted)
    assert cli.main([*BENCHMARK, "d.npz"]) == 130
    assert Path("out.json").read_bytes() == KEPT
    assert "Traceback" not in capsys.readouterr().err


# The compile command. COMPILE starts it with everything right.

COMPILE = ["compile", "net.onnx", "--calibration", "c.npz", "--output", "m.tar", "--json", "out.json"]


@pytest.fixture
def network(folder) -> Path:
    """A small convolutional classifier, net.onnx [1, 3, 8, 8] → [1, 4], with samples to calibrate on."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 3, 3, 3)) * 0.3,
        "b": rng.normal(size=8) * 0.1,
        "fc": rng.normal(size=(8, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    x = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "c.npz", x=x, labels=rng.integers(0, 4, 16))
    return folder


def test_compile_run_and_benchmark_go_together(network, capsys):
    assert cli.main([*COMPILE, "--dump-ir", "ir"]) == 0
    out = capsys.readouterr().out
    assert "conv2d" in out
    assert "w8a8" in out
    found = json.loads(Path("out.json").read_text())
    assert found["package"] == "m.tar"
    assert found["baseline"] == "m.fp32.tar"
    assert Package.load("m.tar").metadata.baseline.sha256 == sha256(Path("m.fp32.tar").read_bytes())
    assert any(Path("ir").iterdir())
    np.savez("in.npz", x=load_arrays("c.npz")["x"][:1])
    assert cli.main([*RUN, "in.npz"]) == 0
    assert load_arrays("out.npz")["y"].shape == (1, 4)
    assert cli.main([*BENCHMARK, "c.npz", "--repeat", "5"]) == 0
    result = json.loads(Path("out.json").read_text())
    assert result["loss"]["samples"] == 16
    assert abs(result["loss"]["delta"]) < 0.1
    executed = {operator["name"]: operator["executed"] for operator in result["operators"]}
    assert executed["conv"] == "w8a8"


def test_a_plan_is_followed_and_the_baseline_can_be_left_out(network):
    assert cli.main([*COMPILE, "--no-baseline"]) == 0
    package = Package.load("m.tar")
    assert package.metadata.baseline is None
    plan = package.plan.to_json().replace('"conv": "w8a8"', '"conv": "fp32"')
    Path("plan.json").write_text(plan)
    assert cli.main([*COMPILE, "--no-baseline", "--plan", "plan.json"]) == 0
    executed = {o.name: o.executed for o in Package.load("m.tar").metadata.operators}
    assert executed["conv"] == "fp32"
    assert executed["fc"] == "w8a8"


def test_wrong_compile_options_are_refused_before_any_work(fails, network):
    assert fails(*COMPILE, "--input-shape", "x") == (
        "--input-shape needs NAME:1,3,224,224 with sizes of at least 1, not 'x'"
    )
    assert "not 'x:0,3'" in fails(*COMPILE, "--input-shape", "x:0,3")
    assert fails(*COMPILE, "--input-shape", "x:1", "--input-shape", "x:1") == (
        "--input-shape gives the input 'x' twice"
    )
    assert (
        fails(*COMPILE, "--plan", "p.json", "--precision", "w8a8") == "give --plan or --precision, not both"
    )
    assert fails(*COMPILE, "--scale", "1;2") == (
        "--scale needs one number or three with commas between, not '1;2'"
    )
    assert fails("compile", "net.onnx", "--output", "no/m.tar") == "--output no/m.tar: there is no folder no"


def test_targets_plans_and_precisions_that_do_not_exist_are_refused(fails, network):
    assert fails(*COMPILE, "--target", "znver5") == "unknown target 'znver5'; did you mean znver4"
    assert "unknown precision 'w9a8'" in fails(*COMPILE, "--precision", "w9a8")
    assert "cannot read the target file gone.toml" in fails(*COMPILE, "--target", "gone.toml")
    for text, said in (
        ('{"schema_version": 1, "operators": {"konv": "w8a8"}}', "names operator 'konv'"),
        ('{"schema_version": 1, "operators": {"conv": "w1a8"}}', "operator 'conv': unknown precision 'w1a8'"),
        ('{"schema_version": 9, "operators": {}}', "plan schema version 9"),
        ("{", "not a valid JSON plan"),
    ):
        Path("plan.json").write_text(text)
        assert said in fails(*COMPILE, "--plan", "plan.json")
    assert "cannot read the plan gone.json" in fails(*COMPILE, "--plan", "gone.json")


def test_networks_and_data_that_do_not_fit_are_refused(fails, network):
    data = load_arrays("c.npz")
    np.savez("c.npz", wrong=data["x"])
    assert "'x'" in fails(*COMPILE)
    data["x"][3, 0, 0, 0] = np.nan
    np.savez("c.npz", **data)
    assert "NaN" in fails(*COMPILE)
    Path("net.onnx").write_bytes(b"not a network")
    assert "net.onnx" in fails(*COMPILE)
    Path("net.onnx").unlink()
    assert "net.onnx" in fails(*COMPILE)
