"""Bundles: a folder with a network, the C++ runner and TVM's runtime, to copy to a device without Python."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside
from tvm_mpq.linker import binutils_prefix
from tvm_mpq.runtime.package import Package
from tvm_mpq.target import architecture

_SOURCES = ("build", "runner.cpp", "tvm_mpq.cpp", "tvm_mpq.h")
_LIBRARIES = ("tvm/lib/libtvm_runtime.so", "tvm_ffi/lib/libtvm_ffi.so")
_VERSION = 1


@dataclass(frozen=True)
class Bundle:
    """The files of a bundle with their bytes, and what is missing in it and why."""

    files: dict[str, int]
    notes: list[str]


def write_bundle(package: Package, folder: str | Path, runtime: str | Path | None = None) -> Bundle:
    """Write ``package`` as a bundle into the new or empty ``folder``.

    ``runtime`` is a folder with the Python packages ``tvm`` and ``tvm_ffi`` for the device's architecture, whose
    libraries are copied; by default those that are known here. Raises MpqError for a folder that holds other files.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MpqError(f"{folder} exists and is no empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MpqError(f"cannot make the folder {folder}: {error.strerror}") from None
    write_beside(folder / "model.so", package.library)
    if package.weights:
        write_beside(folder / "weights.bin", package.weights)
    write_beside(folder / "network.txt", _description(package).encode())
    notes = _add_runtime(package, folder, None if runtime is None else Path(runtime))
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return Bundle(files, notes)


def _description(package: Package) -> str:
    """What the C++ runtime reads: a fact a line."""
    metadata = package.metadata
    lines = [f"tvm-mpq-bundle {_VERSION}", *(f"feature {name}" for name in metadata.target.features)]
    for word, specs in (("input", metadata.inputs), ("output", metadata.outputs)):
        for spec in specs:
            extents = "".join(f" {extent}" for extent in spec.shape)
            lines.append(f"{word} {spec.dtype} {len(spec.shape)}{extents} {spec.name}")
    if package.weights:
        lines.append("weights weights.bin")
    return "\n".join(lines) + "\n"


def _add_runtime(package: Package, folder: Path, runtime: Path | None) -> list[str]:
    machine = architecture(str(package.metadata.target.tvm["mtriple"]))
    with resources.as_file(resources.files("tvm_mpq") / "cpp") as sources:
        source = folder / "source"
        source.mkdir()
        for name in _SOURCES:
            shutil.copy2(sources / name, source / name)
    site = runtime or _known_runtime(machine)
    if site is None or not all((site / library).exists() for library in _LIBRARIES):
        where = f" in {runtime}" if runtime is not None else ""
        return [
            f"no TVM runtime for {machine}{where}: give a folder with --runtime, either that with its unpacked wheels "
            "of apache-tvm and apache-tvm-ffi or what runtime/cpp/build-runtime makes"
        ]
    for library in _LIBRARIES:
        shutil.copy(site / library, folder)
    compiler = _compiler(machine)
    if compiler is None:
        prefix = binutils_prefix(machine)
        package_name = f"g++-{prefix.rstrip('-')}" if prefix else "g++"
        return [
            f"no C++ compiler for {machine}, so that the bundle has no runner: apt-get install {package_name}"
        ]
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as work:
        runner = Path(work) / "runner"
        command = ["sh", str(source / "build"), str(runner), str(site), compiler]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it said nothing"]
            raise MpqError(f"the C++ compiler {compiler} failed: {lines[0]}")
        shutil.copy2(runner, folder / "runner")
    return []


def _compiler(machine: str) -> str | None:
    prefix = binutils_prefix(machine)
    names = (f"{prefix}g++", f"{prefix}clang++") if prefix else ("c++", "g++", "clang++")
    return next((path for path in map(shutil.which, names) if path is not None), None)


def _known_runtime(machine: str) -> Path | None:
    """The folder of this Python's packages, that of the emulated ARM device, or what scripts/small-devices built."""
    if machine == platform.machine():
        spec = importlib.util.find_spec("tvm_ffi")
        return None if spec is None or spec.origin is None else Path(spec.origin).parents[1]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvm-mpq"
    site = cache / "arm-emulator" / "site" if machine == "aarch64" else cache / "runtime" / machine
    return site if site.exists() else None
