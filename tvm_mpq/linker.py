"""Linking a compiled module into a shared library with whatever linker there is; no C compiler needed."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mpq.errors import MpqError

if TYPE_CHECKING:
    from tvm.runtime import Executable


_GNU = {"aarch64": "aarch64-linux-gnu", "arm": "arm-linux-gnueabihf", "riscv64": "riscv64-linux-gnu"}
"""How Debian names each architecture's binutils; ``x86_64`` has its own spelling in package names."""


def find_linker(architecture: str | None = None) -> list[str]:
    """The command that starts a linker for ``architecture`` (None: this machine's own).

    It is ``ld.lld``, which links for all, the architecture's ``ld`` or compiler, or the linker in the package
    ``ziglang``. Raises MpqError that names what to install where there is none.
    """
    prefix = "" if architecture is None else binutils_prefix(architecture)
    here = not prefix
    compilers = ("cc",) if here else (f"{prefix}gcc",)
    for name in ("ld.lld", f"{prefix}ld", *compilers):
        path = shutil.which(name)
        if path is not None:
            return [path, "-nostdlib"] if name in compilers else [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "ld.lld"]
    package = "binutils" if here else f"binutils-{prefix.rstrip('-').replace('_', '-')}"
    raise MpqError(
        f"no linker{'' if here else f' for {architecture}'} found: install one with 'apt-get install {package}' "
        "(or 'pip install ziglang' without root)"
    )


def binutils_prefix(architecture: str) -> str:
    """What the names of GNU's tools for ``architecture`` begin with: nothing for this machine's own."""
    if architecture == platform.machine():
        return ""
    return _GNU.get(architecture, f"{architecture}-linux-gnu") + "-"


class Linking:
    """What TVM's ``export_library`` calls as ``fcompile``: links for ``architecture`` (None: this machine's own)."""

    # What TVM reads off an ``fcompile`` to know which files to give it.
    output_format = "so"
    object_format = "o"
    need_system_lib = False

    def __init__(self, architecture: str | None = None) -> None:
        self.architecture = architecture

    def __call__(
        self, out: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any
    ) -> None:
        """Link ``objects`` into the shared library ``out``.

        No library is named: the objects need only libm's functions and TVM's runtime, and both are in the process
        that loads the library. Leaving them out keeps the bytes the same whatever linker and libc are here.
        """
        # -s: no symbol table beside the dynamic one, which is a fifth of a small package.
        linker = find_linker(self.architecture)
        command = [*linker, "-shared", "-s", "-o", out, *objects, *(options or ())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
            raise MpqError(f"the linker {command[0]} failed: {said}")


link_shared = Linking()
"""For this machine."""


def link_executable(executable: Executable, architecture: str | None = None) -> bytes:
    """The shared library of what ``relax.build`` returned; raises MpqError when it cannot be linked."""
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as folder:
        path = Path(folder) / "model.so"
        executable.export_library(str(path), fcompile=Linking(architecture))
        return path.read_bytes()
