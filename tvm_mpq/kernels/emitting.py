"""Small words for kernels that are written out as programs instead of scheduled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

PROGRAM = "mpq.program"
"""Marks a kernel that is written out, loops and vectors included: no schedule applies."""


def argument(name: str, shape: Sequence[int], dtype: str) -> Buffer:
    """A parameter of the function being built."""
    return T.arg(name, T.Buffer(shape, dtype, layout=None))


def scratch(length: int, dtype: str) -> Buffer:
    """Memory of the surrounding loop, in registers where every place is constant."""
    return T.alloc_buffer((length,), dtype, layout=None)


def store(buffer: Buffer, at: Sequence[Expr | int], value: Expr) -> None:
    """buffer[at] = value."""
    T.buffer_store(buffer, value, list(at))


@contextmanager
def program() -> Iterator[IRBuilder]:
    """A function being built: parameters first, then ``with T.sblock("root")``, which TVM's analyses look for."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({PROGRAM: True})
        yield builder
