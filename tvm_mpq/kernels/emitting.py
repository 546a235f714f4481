"""Small words for kernels that are written out as programs instead of scheduled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

from tvm_mpq.kernels.convolution import Addition

PROGRAM = "mpq.program"
"""Marks a kernel that is written out, loops and vectors included: no schedule applies."""


def argument(name: str, shape: Sequence[int], dtype: str) -> Buffer:
    """A parameter of the function being built."""
    return T.arg(name, T.Buffer(shape, dtype, layout=None))


def addition_arguments(rows: int, channels: int) -> Addition:
    """The parameters of a tensor [rows, channels] that is added to the result, in the order that kernels take them."""
    return Addition(
        argument("other", (rows, channels), "uint8"),
        argument("sum_factors", (3,), "int32"),
        argument("sum_multiplier", (1,), "float32"),
        argument("sum_grid", (2,), "int32"),
    )


def scratch(length: int, dtype: str) -> Buffer:
    """Memory of the surrounding loop, in registers where every place is constant."""
    return T.alloc_buffer((length,), dtype, layout=None)


def store(buffer: Buffer, at: Sequence[Expr | int], value: Expr) -> None:
    """buffer[at] = value."""
    T.buffer_store(buffer, value, list(at))


class When:
    """``with When(conditions):`` emits an If of them all, or nothing for none."""

    def __init__(self, conditions: Sequence[Expr]) -> None:
        condition: Expr | None = None
        for each in conditions:
            condition = each if condition is None else T.And(condition, each)
        self.frames = [] if condition is None else [T.If(condition), T.Then()]

    def __enter__(self) -> None:
        for frame in self.frames:
            frame.__enter__()

    def __exit__(self, *error: object) -> None:
        for frame in reversed(self.frames):
            frame.__exit__(*error)


@contextmanager
def program() -> Iterator[IRBuilder]:
    """A function being built: parameters first, then ``with T.sblock("root")``, which TVM's analyses look for."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({PROGRAM: True})
        yield builder


def store_vector(
    result: Buffer, value: Expr, row: Expr, channel: Expr, lanes: int, conditions: Sequence[Expr] = ()
) -> None:
    """Store ``lanes`` results at ``result[row, channel:]`` under ``conditions``.

    Where the channels fill no whole vectors, those past the last are left out.
    """
    channels = int(result.shape[1])
    if channels % lanes == 0:
        with When(conditions):
            T.buffer_store(result, value, [row, T.ramp(channel, 1, lanes)])
        return
    ragged = scratch(lanes, str(result.dtype))
    T.buffer_store(ragged, value, [T.ramp(0, 1, lanes)])
    with When(conditions), T.serial(0, T.max(0, T.min(lanes, channels - channel))) as lane:
        T.buffer_store(result, ragged[lane], [row, channel + lane])
