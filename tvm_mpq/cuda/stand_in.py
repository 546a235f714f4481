"""Libraries with the names of NVIDIA's driver and runtime, for a process that links but runs nothing.

They hold the functions' names and no code, are made in a temporary folder where the real ones are missing, and never
leave it.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import tvm
from tvm import IRModule, te

from tvm_mpq.errors import MpqError
from tvm_mpq.linker import find_linker

_DRIVER = (
    "cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString", "cuLaunchKernelEx",
    "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuTensorMapEncodeTiled",
)  # fmt: skip
_RUNTIME = (
    "cudaDeviceGetAttribute", "cudaEventCreate", "cudaEventDestroy", "cudaEventElapsedTime", "cudaEventRecord",
    "cudaEventSynchronize", "cudaFree", "cudaFreeHost", "cudaGetDevice", "cudaGetDeviceCount",
    "cudaGetDeviceProperties", "cudaGetErrorName", "cudaGetErrorString", "cudaGetLastError", "cudaGraphDestroy",
    "cudaGraphExecDestroy", "cudaGraphInstantiate", "cudaGraphLaunch", "cudaMalloc", "cudaMallocHost",
    "cudaMemGetInfo", "cudaMemcpyAsync", "cudaMemcpyPeerAsync", "cudaPeekAtLastError", "cudaSetDevice",
    "cudaStreamBeginCapture", "cudaStreamCreate", "cudaStreamCreateWithFlags", "cudaStreamDestroy",
    "cudaStreamEndCapture", "cudaStreamSynchronize", "cudaStreamWaitEvent",
)  # fmt: skip
"""What libtvm_runtime_cuda.so of this version of TVM takes from each."""
_LIBRARIES = {"libcuda.so.1": (_DRIVER, ""), "libcudart.so.13": (_RUNTIME, "libcudart.so.13")}
"""By file name: functions, and the version that their names carry."""


def stand_ins(folder: Path) -> list[Path]:
    """Make what is missing inside ``folder``; gives the folders in which a process then finds it."""
    missing = [name for name in _LIBRARIES if not _loads(name)]
    if not missing:
        return []
    made = folder / "stand-ins"
    made.mkdir()
    for name in missing:
        _make(made, name)
    return [made]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _make(folder: Path, name: str) -> None:
    functions, version = _LIBRARIES[name]
    options = [f"--defsym={function}=0" for function in functions]
    if version:
        script = folder / f"{name}.version"
        script.write_text(f"{version} {{ global: *; }};\n", encoding="utf-8")
        options.append(f"--version-script={script}")
    command = [*find_linker(), "-shared", "-soname", name, "-o", str(folder / name), *options]
    done = subprocess.run([*command, str(_object(folder))], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise MpqError(f"the linker {command[0]} cannot make a stand-in for {name}: {said}")


def _object(folder: Path) -> Path:
    """Some object file: linkers want one."""
    path = folder / "any.o"
    if not path.exists():
        x = te.placeholder((1,), "float32", "x")
        copy = te.create_prim_func([x, te.compute((1,), lambda i: x[i], "y")])
        tvm.compile(IRModule({"main": copy}), target="llvm").mod.write_to_file(str(path))
    return path
