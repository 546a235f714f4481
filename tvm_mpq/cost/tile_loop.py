"""The loop that multiplies AMX's tiles as fast as it goes, for :mod:`tvm_mpq.cost.peaks` to time."""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import PrimFunc

from tvm_mpq.cost.loops import Step
from tvm_mpq.kernels import amx_instructions
from tvm_mpq.kernels.amx_instructions import MOST_BYTES
from tvm_mpq.kernels.emitting import argument

_RESULTS = (2, 2)
"""Tiles of results: four hide how long a multiplication takes."""


def tile_loop(step: Step, multiplications: int, threads: int) -> PrimFunc:
    """Each thread makes ``multiplications`` of whole tiles ``count`` times: weights and out (neither is used), count.

    The parameters are those of :func:`tvm_mpq.cost.loops.multiply_loop`.
    """
    rows, columns = _RESULTS
    results = rows * columns
    words = MOST_BYTES // 4
    imported = amx_instructions.imported(words, rows, columns)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        argument("weights", (2, step.lanes), step.dtype)
        argument("out", (threads, multiplications * step.lanes), step.dtype)
        count = T.arg("count", T.int32())
        amx_instructions.ask()
        with T.parallel(0, threads, annotations={"pragma_import_llvm": imported}):
            amx_instructions.configure(words, rows, columns)
            with T.serial(0, count):
                for number in range(multiplications):
                    amx_instructions.multiply(number % results, results, results + rows)
            amx_instructions.release()
    return builder.get()
