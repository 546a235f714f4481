"""The process that :mod:`tvm_mpq.cuda.linking` starts: reads a module and a job, writes the library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tvm
import tvm_ffi

from tvm_mpq.cuda.linking import JOB, LIBRARY, MODULE
from tvm_mpq.cuda.nvcc import fatbin
from tvm_mpq.cuda.source import executable
from tvm_mpq.errors import MpqError
from tvm_mpq.linker import Linking


def main(folder: Path) -> None:
    """Build and link what is in ``folder``; raises MpqError where that fails."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    planned = tvm.ir.load_json((folder / MODULE).read_text(encoding="utf-8"))
    if tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        raise MpqError(
            "TVM's CUDA runtime (libtvm_runtime_cuda.so) cannot be loaded: install apache-tvm anew"
        )

    def compile_source(source: str) -> bytes:
        return fatbin(source, job["architectures"], job["nvcc"])

    # TVM would hand an error of its callback on as a RuntimeError.
    tvm_ffi.register_error("MpqError", MpqError)
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_source, override=True)
    built = executable(planned, job["tvm_target"])
    built.export_library(str(folder / LIBRARY), fcompile=Linking(job["host_architecture"]))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except MpqError as error:
        sys.exit(str(error))
