"""Linking a compiled module into a shared library with whatever linker there is; no C compiler needed."""

from __future__ import annotations

import importlib.util
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


def find_linker() -> list[str]:
    """The command that starts a linker: ``ld.lld``, ``ld``, ``cc``, or the one in the package ``ziglang``.

    Raises MpqError that names what to install where there is none.
    """
    for name in ("ld.lld", "ld", "cc"):
        path = shutil.which(name)
        if path is not None:
            return [path, "-nostdlib"] if name == "cc" else [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "ld.lld"]
    raise MpqError(
        "no linker found: install one with 'apt-get install binutils' (or 'pip install ziglang' without root)"
    )


def link_shared(out: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any) -> None:
    """Link ``objects`` into the shared library ``out``: what TVM's ``export_library`` calls as ``fcompile``.

    No library is named: the objects need only libm's functions and TVM's runtime, and both are in the process
    that loads the library. Leaving them out keeps the bytes the same whatever linker and libc are here.
    """
    # -s: no symbol table beside the dynamic one, which is a fifth of a small package.
    command = [*find_linker(), "-shared", "-s", "-o", out, *objects, *(options or ())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise MpqError(f"the linker {command[0]} failed: {said}")


# What TVM reads off an ``fcompile`` to know which files to give it.
link_shared.output_format = "so"  # type: ignore[attr-defined]
link_shared.object_format = "o"  # type: ignore[attr-defined]
link_shared.need_system_lib = False  # type: ignore[attr-defined]


def link_executable(executable: Executable) -> bytes:
    """The shared library of what ``relax.build`` returned; raises MpqError when it cannot be linked."""
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as folder:
        path = Path(folder) / "model.so"
        executable.export_library(str(path), fcompile=link_shared)
        return path.read_bytes()
