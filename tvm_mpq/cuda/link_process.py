"""The process that :mod:`tvm_mpq.cuda.linking` starts: reads a module and a job, writes the library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tvm

from tvm_mpq.cuda.compiling import compile_sources_with
from tvm_mpq.cuda.linking import JOB, LIBRARY, MODULE
from tvm_mpq.cuda.nvcc import best_code
from tvm_mpq.cuda.source import executable
from tvm_mpq.errors import MpqError
from tvm_mpq.linker import Linking


def main(folder: Path) -> None:
    """Build and link what is in ``folder``; raises MpqError where that fails."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    planned = tvm.ir.load_json((folder / MODULE).read_text(encoding="utf-8"))
    compile_sources_with(lambda source: best_code(source, job["architectures"], job["nvcc"])[0])
    built = executable(planned, job["tvm_target"])
    built.export_library(str(folder / LIBRARY), fcompile=Linking(job["host_architecture"]))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except MpqError as error:
        sys.exit(str(error))
