"""The process that builds and measures kernels for the tuner: a wrong tile may crash or hang it, and only it.

    python -m tvm_mpq.tuning.worker

reads requests, one JSON list [function, arguments …] a line, and answers each with one JSON line {"value": …} or
{"error": text, "kind": class}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from tvm_mpq.runtime.kernel_timing import measure_kernels
from tvm_mpq.tuning.building import build_tile
from tvm_mpq.tuning.building_cuda import build_cuda_tile
from tvm_mpq.tuning.remote import measure_on_device

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "build": build_tile,
    "build_cuda": build_cuda_tile,
    "measure": measure_kernels,
    "measure_on_device": measure_on_device,
}


def _main() -> None:
    # What TVM and LLVM print goes to stderr; the answers have the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"value": _FUNCTIONS[name](*arguments)}
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[-1]
            answer = {"error": text, "kind": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()
