"""32-bit ARM and RISC-V, for which TVM has no wheels: packages linked for them, and run with a runtime built here."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from servers import EMULATOR

from tvm_mpq import sample
from tvm_mpq.bundle import write_bundle
from tvm_mpq.compiler import compile_model
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session

# Target → what ELF calls the machine, its bits, QEMU's program, where Debian's cross compiler has the C library.
DEVICES = {
    "armv7-neon": (40, 32, "qemu-arm", "/usr/arm-linux-gnueabihf"),
    "riscv64": (243, 64, "qemu-riscv64", "/usr/riscv64-linux-gnu"),
}
IMAGES = 4


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    sample.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def packages(network: Path) -> dict[str, Package]:
    return {
        target: compile_model(
            network / "fashion.onnx",
            target=target,
            calibration=network / "calibration.npz",
            samples=16,
            baseline=False,
        )
        for target in ("host", *DEVICES)
    }


@pytest.mark.parametrize("target", DEVICES)
def test_packages_are_linked_for_the_machine(target: str, packages: dict[str, Package]) -> None:
    machine, bits, *_ = DEVICES[target]
    header = packages[target].library[:20]
    assert header[:4] == b"\x7fELF"
    assert (header[4], struct.unpack("<HH", header[16:])) == (bits // 32, (3, machine))


@pytest.mark.parametrize("target", DEVICES)
def test_a_bundle_gives_the_bytes_of_x86(target: str, packages, network: Path, tmp_path: Path) -> None:
    _, _, emulator, root = DEVICES[target]
    bundle = write_bundle(packages[target], tmp_path / "bundle")
    qemu = EMULATOR.parent / "bin" / emulator
    if bundle.notes or not qemu.exists():
        pytest.skip(
            f"{(*bundle.notes, 'no emulator')[0]}: scripts/arm-emulator and scripts/small-devices set it up"
        )
    here = Session(packages["host"], 1)
    with np.load(network / "test.npz") as data:
        images = data[next(name for name in data.files if name != "labels")][:IMAGES]
    for image in images[:, None]:
        image.tofile(tmp_path / "in.bin")
        run = [qemu, "-L", root, tmp_path / "bundle" / "runner", tmp_path / "bundle", tmp_path / "in.bin"]
        subprocess.run([*map(str, run), "--outputs", str(tmp_path / "out")], check=True, capture_output=True)
        (expected,) = here.run(image)
        assert (tmp_path / "out0.bin").read_bytes() == expected.tobytes()
