"""Compile one kernel for an instruction set and call it on NumPy arrays.

Instruction sets that this machine lacks are skipped, or, with TVM_MPQ_EMULATE=1 in the environment, emulated
(some seconds a kernel and example: name the tests to run).
"""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
import tvm
from emulated_pc import require_emulator, run_emulated
from emulated_program import Program
from tvm.tirx import PrimFunc

from tvm_mpq.cpu import cpu_features
from tvm_mpq.target import Target, load_target
from tvm_mpq.transform.small_buffers import compile_kernels

TARGETS = {
    "generic": "x86-64-v2",
    "avx2": "x86-64-v3",
    "avx512": "x86-64-v4",
    "avxvnni": "alderlake",
    "avx512vnni": "cascadelake",
    "avx512bf16": "cooperlake",
}
"""Of the instruction sets for vectors."""
TILES = {"amx": "sapphirerapids"}
"""Of those that only some kernels are made for."""


@functools.cache
def target_of(instruction: str) -> Target:
    return load_target({**TARGETS, **TILES}[instruction])


def missing(instruction: str) -> list[str]:
    """The features of the instruction set that this machine lacks."""
    return [f for f in target_of(instruction).features if f not in cpu_features()]


def require(instruction: str) -> None:
    """Skip, naming what lacks, unless the instruction set can be run."""
    lacks = missing(instruction)
    if lacks and os.environ.get("TVM_MPQ_EMULATE") == "1" and instruction in TARGETS:
        require_emulator()
    elif lacks:
        pytest.skip(f"this machine cannot run {instruction}: it lacks {', '.join(lacks)}")


def run(function: PrimFunc, instruction: str, *arguments: np.ndarray) -> np.ndarray:
    """The kernel's output, whose shape and dtype are those of the last parameter."""
    if missing(instruction):
        program = Program()
        output = program.call(instruction, function, *map(program.constant, arguments))
        return run_emulated(program, [output], TARGETS[instruction])[0]
    target = target_of(instruction).tvm_target()
    library = compile_kernels(tvm.IRModule({"main": function}), target)
    last = function.params[-1]
    out = np.full([int(extent) for extent in last.shape], 77, str(last.dtype))
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*arguments, out)]
    library["main"](*tensors)
    return tensors[-1].numpy()
