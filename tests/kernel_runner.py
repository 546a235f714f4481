"""Compile one kernel for an instruction set of this machine and call it on NumPy arrays."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tvm
from tvm.tirx import PrimFunc

from tvm_mpq.cpu import cpu_features
from tvm_mpq.target import Target, load_target

TARGETS = {
    "generic": "x86-64-v2",
    "avx2": "x86-64-v3",
    "avx512": "x86-64-v4",
    "avxvnni": "alderlake",
    "avx512vnni": "cascadelake",
}


@functools.cache
def target_of(instruction: str) -> Target:
    return load_target(TARGETS[instruction])


def require(instruction: str) -> None:
    """Skip, naming what lacks, unless this machine runs the instruction set."""
    missing = [f for f in target_of(instruction).features if f not in cpu_features()]
    if missing:
        pytest.skip(f"this machine cannot run {instruction}: it lacks {', '.join(missing)}")


def run(function: PrimFunc, instruction: str, *arguments: np.ndarray) -> np.ndarray:
    """The kernel's output, whose shape and dtype are those of the last parameter."""
    library = tvm.compile(tvm.IRModule({"main": function}), target=target_of(instruction).tvm_target())
    last = function.params[-1]
    out = np.full([int(extent) for extent in last.shape], 77, str(last.dtype))
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*arguments, out)]
    library["main"](*tensors)
    return tensors[-1].numpy()
