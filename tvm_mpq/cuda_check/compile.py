"""CUDA source → a shared library for this machine, by g++ against the headers in ``shim``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from tvm_mpq.cuda_check.kernels import KernelInfo
from tvm_mpq.cuda_check.symbols import DYNAMIC
from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256, user_cache, write_beside

_COMMON = ("-std=c++17", "-fPIC", "-fno-extern-tls-init", "-march=native", "-fvisibility=hidden", "-w")
_KERNELS = (
    *("-x", "c++", "-O1", "-g1", "-include", "cuda_builtins.h"),
    # The sanitizer's calls tell of every access; what they do is ours (memory.cpp), so nothing of it is linked.
    *("-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"),
    # Vectors are loaded and stored whole, so that their alignment can be checked.
    "-fno-tree-sra",
    # No optimization that the device's compiler would not do, or that changes a float.
    *("-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
)
_RUNTIME = ("scheduler.cpp", "memory.cpp", "launch.cpp")

_FOOTER = """
#include "cuda_call.h"
namespace {{
{calls}
}}
extern "C" {{
emulated::Kernel cuda_check_kernels[] = {{
{table}
}};
{exported}
}}
"""
_CALL = """\
const uint64_t cuda_check_bytes_{i}[] = {{{bytes}}};
__attribute__((no_sanitize("thread"))) void cuda_check_call_{i}(const emulated::Any* v) {{
  emulated::apply({name}, v);
}}"""
_ROW = '{{"{name}", cuda_check_call_{i}, {count}, cuda_check_bytes_{i}, "{tags}", 0, 0}},'
_EXPORTED = """\
__attribute__((visibility("default"), no_sanitize("thread"))) int __tvm_ffi_{name}(
    void*, const emulated::Any* v, int n, emulated::Any*) {{
  return cuda_check_packed(cuda_check_kernels + {i}, v, n);
}}"""


def compile_source(source: str, kernels: Sequence[KernelInfo]) -> Path:
    """The library of all ``kernels`` in a CUDA source, which is compiled as it is; kept in the user's cache.

    Raises MpqError when there is no g++ of version 12 or later, and when it refuses the source.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise MpqError("emulating CUDA kernels needs g++ (Debian's package g++); none is on PATH")
    with resources.as_file(resources.files("tvm_mpq") / "cuda_check" / "shim") as shim:
        parts = [*sorted(shim.iterdir())]
        key = sha256(b"\0".join([*(part.read_bytes() for part in parts), _version(compiler), *_flags()]))
        folder = user_cache("cuda_check") / key[:16]
        folder.mkdir(parents=True, exist_ok=True)
        objects = [_build_runtime(compiler, shim, folder, name) for name in _RUNTIME]
        text = source + _footer(kernels)
        library = folder / f"{sha256(text.encode())[:24]}.so"
        if not library.exists():
            _build(compiler, shim, text, [*objects], library, _renamed(source))
        return library


def _footer(kernels: Sequence[KernelInfo]) -> str:
    calls, rows, exported = [], [], []
    for i, kernel in enumerate(kernels):
        sizes = ", ".join(f"{size}u" for size in (*kernel.buffer_bytes, 0))
        calls.append(_CALL.format(i=i, name=kernel.name, bytes=sizes))
        count = len(kernel.buffer_bytes)
        rows.append(_ROW.format(i=i, name=kernel.name, count=count, tags=kernel.tags))
        exported.append(_EXPORTED.format(i=i, name=kernel.name))
    return _FOOTER.format(calls="\n".join(calls), table="\n".join(rows), exported="\n".join(exported))


def _renamed(source: str) -> list[str]:
    """Dynamic shared memory has one name for the runtime."""
    names = set(re.findall(r"extern\s+__shared__[^;]*?(\w+)\s*\[\s*\]\s*;", source)) - {DYNAMIC}
    return [f"-D{name}={DYNAMIC}" for name in sorted(names)]


def _build_runtime(compiler: str, shim: Path, folder: Path, name: str) -> Path:
    built = folder / f"{name}.o"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / "made.o"
            _run([compiler, *_COMMON, "-O2", "-c", str(shim / name), "-o", str(made)])
            os.replace(made, built)
    return built


def _build(
    compiler: str, shim: Path, text: str, objects: Sequence[Path], library: Path, macros: list[str]
) -> None:
    # The debug information names the source's file, which therefore stays beside the library.
    code = library.with_suffix(".cu")
    write_beside(code, text.encode())
    with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
        compiled, made = Path(temporary) / "kernels.o", Path(temporary) / "made.so"
        _run([compiler, *_COMMON, *_KERNELS, *macros, "-I", str(shim), "-c", str(code), "-o", str(compiled)])
        _run([compiler, "-shared", str(compiled), *map(str, objects), "-o", str(made)])
        os.replace(made, library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise MpqError(f"g++ cannot compile the CUDA source: {errors[0] if errors else done.returncode}")


def _version(compiler: str) -> bytes:
    return subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout


def _flags() -> list[bytes]:
    return [flag.encode() for flag in (*_COMMON, *_KERNELS)]
