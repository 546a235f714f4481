"""Bundles: what `tvm-mpq export` writes runs without Python and gives the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from servers import EMULATOR
from tiny_package import BATCH, FEATURES, tiny_package

from tvm_mpq import cli, sample
from tvm_mpq.bundle import write_bundle
from tvm_mpq.compiler import compile_model
from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.session import Session

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
CROSS = "aarch64-linux-gnu-g++"


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    sample.write_files(folder)
    return folder


def _compile(network: Path, target: str):
    return compile_model(
        network / "fashion.onnx",
        target=target,
        calibration=network / "calibration.npz",
        samples=16,
        precision="w4g32a8",
        baseline=False,
    )


def _image(network: Path) -> np.ndarray:
    with np.load(network / "test.npz") as data:
        return data[next(name for name in data.files if name != "labels")][:1]


@needs_compiler
def test_the_runner_gives_the_sessions_bytes(network, tmp_path, capsys) -> None:
    package = _compile(network, "host")
    package.save(tmp_path / "m.tar")
    folder = tmp_path / "bundle"
    command = ["export", str(tmp_path / "m.tar"), "--output", str(folder), "--json", str(tmp_path / "j.json")]
    assert cli.main(command) == 0
    assert "runner" in capsys.readouterr().out
    said = json.loads((tmp_path / "j.json").read_text())
    assert said["notes"] == []
    assert {"libtvm_ffi.so", "libtvm_runtime.so", "model.so", "network.txt", "runner", "weights.bin"} == {
        *said["files"]
    }
    image = _image(network)
    image.tofile(tmp_path / "in.bin")
    run = [folder / "runner", folder, tmp_path / "in.bin", "--outputs", tmp_path / "out", "--repeat", "3"]
    done = subprocess.run(list(map(str, run)), capture_output=True, text=True, check=True)
    assert "peak resident" in done.stdout
    (expected,) = Session(package, 1).run(image)
    assert (tmp_path / "out0.bin").read_bytes() == expected.tobytes()

    def fails(*arguments: object) -> str:
        runner = str(folder / "runner")
        done = subprocess.run([runner, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "cannot read /nowhere/network.txt" in fails("/nowhere")
    assert "is not a file of 3136 bytes" in fails(folder, folder / "network.txt")
    assert "unknown option --fast" in fails(folder, "--fast", "1")
    with (folder / "network.txt").open("a") as file:
        file.write("feature warp_drive\n")
    assert "this device lacks warp_drive" in fails(folder)


@pytest.mark.skipif(not EMULATOR.exists(), reason="no emulated ARM device: scripts/arm-emulator sets it up")
@pytest.mark.skipif(
    shutil.which(CROSS) is None, reason="no cross compiler: apt-get install g++-aarch64-linux-gnu"
)
def test_an_arm_bundle_runs_without_python_on_the_emulated_device(network, tmp_path) -> None:
    write_bundle(_compile(network, "raspberry-pi-5"), tmp_path / "arm")
    image = _image(network)
    image.tofile(tmp_path / "in.bin")
    emulator = [EMULATOR.parent / "bin" / "qemu-aarch64", "-L", EMULATOR.parent / "root", "-cpu"]
    run = [tmp_path / "arm" / "runner", tmp_path / "arm", tmp_path / "in.bin", "--outputs", tmp_path / "out"]
    subprocess.run(list(map(str, [*emulator, "cortex-a76", *run])), check=True, capture_output=True)
    (expected,) = Session(_compile(network, "host"), 1).run(image)
    assert (tmp_path / "out0.bin").read_bytes() == expected.tobytes()
    lacking = subprocess.run(
        list(map(str, [*emulator, "cortex-a72", *run])), capture_output=True, text=True, check=False
    )
    assert lacking.returncode == 2
    assert lacking.stderr.startswith("error: this device lacks dotprod")


def test_what_is_missing_is_said(tmp_path, monkeypatch) -> None:
    package = tiny_package(0)
    bundle = write_bundle(package, tmp_path / "a", tmp_path)
    assert "no TVM runtime for x86_64" in bundle.notes[0]
    assert f"input float32 2 {BATCH} {FEATURES} x\n" in (tmp_path / "a" / "network.txt").read_text()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    bundle = write_bundle(package, tmp_path / "b")
    assert bundle.notes == [
        "no C++ compiler for x86_64, so that the bundle has no runner: apt-get install g++"
    ]
    with pytest.raises(MpqError, match="exists and is no empty folder"):
        write_bundle(package, tmp_path / "b")


def test_an_unknown_format_is_refused(tmp_path, capfd) -> None:
    assert cli.main(["export", "m.tar", "--output", str(tmp_path), "--format", "zip"]) == 2
    assert "unknown --format 'zip'; known are cpp-bundle" in capfd.readouterr().err
