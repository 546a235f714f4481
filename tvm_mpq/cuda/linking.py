"""A network's library with a fat binary inside, built in a process of its own.

TVM puts machine code into a library only where NVIDIA's runtime is loaded, which wants a driver. Where there is none
that process gets libraries of the same names whose functions are never called; this one never sees them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule

from tvm_mpq.cuda.nvcc import working_nvcc
from tvm_mpq.cuda.stand_in import stand_ins
from tvm_mpq.errors import MpqError
from tvm_mpq.target import architecture

MODULE, JOB, LIBRARY = "module.json", "job.json", "model.so"
"""Files in the folder that the process is given."""


@dataclass(frozen=True)
class Job:
    """What the process must know beside the module: the TVM target, its architectures, and the compiler's path."""

    tvm_target: dict[str, Any]
    architectures: tuple[str, ...]
    host_architecture: str
    nvcc: str


def link_cuda(planned: IRModule, tvm_target: Mapping[str, Any], architectures: Sequence[str]) -> bytes:
    """The shared library of a planned module, with machine code for GPUs of all ``architectures``.

    Raises MpqError where the CUDA compiler or a linker for the target's processor is missing or fails.
    """
    host = architecture(str(tvm_target["host"]["mtriple"]))
    job = Job(dict(tvm_target), tuple(architectures), host, working_nvcc())
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as name:
        folder = Path(name)
        (folder / MODULE).write_text(tvm.ir.save_json(planned), encoding="utf-8")
        (folder / JOB).write_text(json.dumps(asdict(job)), encoding="utf-8")
        environment = {**os.environ, **linking_environment(folder)}
        command = [sys.executable, "-m", "tvm_mpq.cuda.link_process", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise MpqError(said[-1])
        return (folder / LIBRARY).read_bytes()


def linking_environment(folder: Path) -> dict[str, str]:
    """What a process needs to link code for GPUs: where NVIDIA's libraries, or stand-ins made in ``folder``, are."""
    inherited = [os.environ[_PATHS]] if os.environ.get(_PATHS) else []
    return {_PATHS: os.pathsep.join([*inherited, *map(str, stand_ins(folder))])}


_PATHS = "LD_LIBRARY_PATH"
