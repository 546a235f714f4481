"""ARM's matrix multiplication of bytes as a tensor intrinsic: twice the products of a dot product an instruction.

``usmmla`` adds the products of two rows of eight u8 and two columns of eight s8 to a 2×2 block of int32. A step makes
two rows of four lanes, which lie as two such blocks through the whole reduction, so that no step moves a result:

    C[l // 2, r, l mod 2] += (D[l] ·) Σ_w,e A[w, r, e] · B[w, l, e]

Activations are staged as they are read here, eight bytes of two rows by turns. Weights of up to four bits lie two in a
byte, code + 8, those of an even word in the low half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc, const

from tvm_mpq.kernels import neon
from tvm_mpq.kernels.tensor_intrinsics import nibble, unpack_nibbles

ROWS = 2
WORD = 8
"""Products that an instruction adds to each of its results."""
_LANES = 4


def accumulator_layout(g: Expr, row: Expr, block: Expr, lane: Expr) -> tuple[Expr, ...]:
    """Where a result lies: in blocks of 2×2."""
    return (g, row // ROWS, block, lane // 2, row % ROWS, lane % 2)


def stage_layout(g: Expr, row: Expr, k: Expr) -> tuple[Expr, ...]:
    """Where an activation lies: words of two rows by turns."""
    return (g, row // ROWS, k // WORD, row % ROWS, k % WORD)


@dataclass(frozen=True)
class MatrixStep:
    """A step of so many ``words`` of eight products, and how its weights are stored."""

    words: int
    nibbles: bool = False
    multiplied: bool = False

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return f"tvm_mpq.{neon.MATRIX}.{self.words}" + "n" * self.nibbles + "m" * self.multiplied

    def build(self, body: Callable[[Buffer, Buffer, Buffer, Buffer | None], None]) -> PrimFunc:
        """A function of the buffers A, B, (D,) C with ``body`` in its block."""
        rows = self.words // 2 if self.nibbles else self.words
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("step")
            a = _buffer("A", (self.words, ROWS, WORD), "uint8")
            b = _buffer("B", (rows, _LANES, WORD), "uint8" if self.nibbles else "int8")
            d = _buffer("D", (_LANES,), "int8") if self.multiplied else None
            c = _buffer("C", (2, ROWS, 2), "int32")
            with T.sblock("root"):
                factors = [] if d is None else [d[0:_LANES]]
                T.reads(
                    c[0:2, 0:ROWS, 0:2],
                    a[0 : self.words, 0:ROWS, 0:WORD],
                    b[0:rows, 0:_LANES, 0:WORD],
                    *factors,
                )
                T.writes(c[0:2, 0:ROWS, 0:2])
                body(a, b, c, d)
        return builder.get()

    def description(self, a: Buffer, b: Buffer, c: Buffer, d: Buffer | None) -> None:
        """The step one product at a time."""
        with T.serial(0, ROWS) as r, T.serial(0, _LANES) as i, T.serial(0, WORD * self.words) as k:  # noqa: SIM117
            with T.sblock("update"):
                vr, vi, vk = T.axis.remap("SSR", [r, i, k])
                if self.nibbles:
                    weight = nibble(b[vk // (2 * WORD), vi, vk % WORD], vk // WORD)
                else:
                    weight = T.cast(
                        b[0, vi, vk] if self.words == 1 else b[vk // WORD, vi, vk % WORD], "int32"
                    )
                product = T.cast(a[vk // WORD, vr, vk % WORD], "int32") * weight
                if d is not None:
                    product = product * T.cast(d[vi], "int32")
                T.buffer_store(c, c[vi // 2, vr, vi % 2] + product, [vi // 2, vr, vi % 2])

    def implementation(self, a: Buffer, b: Buffer, c: Buffer, d: Buffer | None) -> None:
        """The step in instructions."""
        for pair in (0, 1):
            old = c.vload([pair, 0, 0], "int32x4")
            total = old if d is None else T.broadcast(T.int32(0), 4)
            for word, columns in enumerate(self._columns(b, pair)):
                rows = a.vload([word, 0, 0], "uint8x16")
                total = neon.matrix(total, rows, columns)
            if d is not None:
                factors = T.cast(d.vload([0], "int8x4"), "int32x4")
                total = old + total * T.Shuffle(
                    [factors], [const(2 * pair + lane % 2, "int32") for lane in range(4)]
                )
            T.buffer_store(c, total, [pair, 0, T.ramp(0, 1, 4)])

    def _columns(self, b: Buffer, pair: int) -> list[Expr]:
        """A vector of two lanes' weights for each word."""
        if not self.nibbles:
            return [b.vload([word, 2 * pair, 0], "int8x16") for word in range(self.words)]
        stored = [b.vload([word, 2 * pair, 0], "uint8x16") for word in range(self.words // 2)]
        return [half for vector in stored for half in unpack_nibbles(vector, 16)]


def _buffer(name: str, shape: tuple[int, ...], dtype: str) -> Buffer:
    return T.arg(name, T.Buffer(shape, dtype, offset_factor=1))


@cache
def register(step: MatrixStep) -> str:
    """Register the step with TVM (once a process) and return its name for ``Schedule.tensorize``."""
    TensorIntrin.register(
        step.name, step.build(step.description), step.build(step.implementation), override=True
    )
    return step.name
