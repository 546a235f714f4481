"""The dot-product instructions as tensor intrinsics: what one computes (description) and how (implementation).

Every one computes ``C[l] += Σ_g A[g] · B[g // P, l, g mod P]`` for ``lanes`` int32 results l, ``group`` products g and
P products a word: ``A`` is read word by word, each broadcast to all lanes, so P activations fill 32 bits. With a
multiplier it is ``C[l] += D[l] · Σ_g …``. Weights of up to four bits lie two in a byte, code + 8, those of an even
word in the low half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels import memory_operand, neon
from tvm_mpq.kernels.narrow_weights import stored_dtype, widened

NIBBLE_OFFSET = 8
"""What is added to a 4-bit code where two are stored in a byte."""


@dataclass(frozen=True)
class Step:
    """What a tensor intrinsic is made for: ``words`` of 32 bits of activations a step, and how weights are stored."""

    family: str
    activation: str
    lanes: int
    per_word: int
    words: int = 1
    nibbles: bool = False
    multiplied: bool = False
    weight: str = "int8"

    @property
    def name(self) -> str:
        """The name it is registered under."""
        text = f"tvm_mpq.{self.family}.{self.weight}.{self.lanes}x{self.words}x{self.per_word}"
        return text + ("n" if self.nibbles else "") + ("m" if self.multiplied else "")

    @property
    def accumulator(self) -> str:
        """The dtype of the results."""
        return "float32" if self.activation.startswith("float") else "int32"

    @property
    def stored(self) -> str:
        """The dtype of the weights' array."""
        return "uint8" if self.nibbles else stored_dtype(self.weight)

    @property
    def from_memory(self) -> bool:
        """Whether each multiplication reads its weights from memory (see :mod:`memory_operand`)."""
        whole = not self.nibbles and not self.multiplied
        return self.family == "pmaddubsw" and self.lanes == memory_operand.LANES and whole

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """Of the weights that one step reads: words (two a byte: half as many), lanes, products a word."""
        return (self.words // 2 if self.nibbles else self.words, self.lanes, self.per_word)


def nibble(byte: Expr, word: Expr) -> Expr:
    """The code, int32, that lies in ``byte`` for word number ``word``."""
    return ((byte.astype("int32") >> (word % 2 * 4)) & 15) - NIBBLE_OFFSET


def _description(step: Step) -> PrimFunc:
    lanes, per, group = step.lanes, step.per_word, step.words * step.per_word
    shape, stored, accumulator = step.weight_shape, step.stored, step.accumulator

    def weight(B: T.Buffer, lane: Expr, g: Expr) -> Expr:
        if step.nibbles:
            return nibble(B[g // (2 * per), lane, g % per], g // per)
        value = B[0, lane, g] if step.words == 1 else B[g // per, lane, g % per]
        return widened(value, step.weight) if accumulator == "float32" else T.cast(value, "int32")

    if not step.multiplied:

        @T.prim_func(s_tir=True)
        def plain(
            A: T.Buffer((group,), step.activation, offset_factor=1),
            B: T.Buffer(shape, stored, offset_factor=1),
            C: T.Buffer((lanes,), accumulator, offset_factor=1),
        ) -> None:
            with T.sblock("root"):
                T.reads(C[0:lanes], A[0:group], B[0 : shape[0], 0:lanes, 0:per])
                T.writes(C[0:lanes])
                for i in T.serial(0, lanes):
                    for k in T.serial(0, group):
                        with T.sblock("update"):
                            vi, vk = T.axis.remap("SR", [i, k])
                            C[vi] = C[vi] + T.cast(A[vk], accumulator) * weight(B, vi, vk)

        return plain

    @T.prim_func(s_tir=True)
    def multiplied(
        A: T.Buffer((group,), step.activation, offset_factor=1),
        B: T.Buffer(shape, stored, offset_factor=1),
        D: T.Buffer((lanes,), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:group], B[0 : shape[0], 0:lanes, 0:per], D[0:lanes])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, group):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * weight(B, vi, vk) * T.cast(D[vi], "int32")

    return multiplied


def _implementation(step: Step) -> PrimFunc:
    lanes, per, group = step.lanes, step.per_word, step.words * step.per_word
    shape, stored, accumulator = step.weight_shape, step.stored, step.accumulator

    def activations(A: T.Buffer) -> Any:
        if step.family in neon.FAMILIES:
            return A.vload([0], f"{step.activation}x{group}")
        words = [A.vload([word * per], f"{step.activation}x{per}") for word in range(step.words)]
        return [T.broadcast(T.reinterpret(word, dtype="int32"), lanes) for word in words]

    def weights(B: T.Buffer) -> Any:
        if step.from_memory:
            return B.access_ptr("r")
        vectors = [B.vload([word, 0, 0], f"{stored}x{lanes * per}") for word in range(shape[0])]
        return (
            [half for vector in vectors for half in unpack_nibbles(vector, lanes * per)]
            if step.nibbles
            else vectors
        )

    multiply: Any
    if step.from_memory:
        multiply = memory_operand.multiply
    elif step.family in neon.FAMILIES:
        multiply = neon.multiplication(step.family, step.words, step.weight)
    else:
        multiply = _FAMILIES[step.family](lanes)

    if not step.multiplied:

        @T.prim_func(s_tir=True)
        def plain(
            A: T.Buffer((group,), step.activation, offset_factor=1),
            B: T.Buffer(shape, stored, offset_factor=1),
            C: T.Buffer((lanes,), accumulator, offset_factor=1),
        ) -> None:
            with T.sblock("root"):
                T.reads(C[0:lanes], A[0:group], B[0 : shape[0], 0:lanes, 0:per])
                T.writes(C[0:lanes])
                C[T.ramp(T.int32(0), 1, lanes)] = multiply(
                    C.vload([0], f"{accumulator}x{lanes}"), activations(A), weights(B), None
                )

        return plain

    @T.prim_func(s_tir=True)
    def multiplied(
        A: T.Buffer((group,), step.activation, offset_factor=1),
        B: T.Buffer(shape, stored, offset_factor=1),
        D: T.Buffer((lanes,), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:group], B[0 : shape[0], 0:lanes, 0:per], D[0:lanes])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = multiply(
                C.vload([0], f"int32x{lanes}"),
                activations(A),
                weights(B),
                T.cast(D.vload([0], f"int8x{lanes}"), f"int32x{lanes}"),
            )

    return multiplied


def unpack_nibbles(bytes_: Expr, count: int) -> list[Expr]:
    """Two vectors of ``count`` int8 codes from one of ``count`` bytes with two codes each."""
    low = bytes_ & T.broadcast(T.uint8(15), count)
    # There is no shift of bytes: shift pairs and clear what came from the neighbour.
    pairs = T.reinterpret(bytes_, dtype=f"uint16x{count // 2}")
    shifted = T.shift_right(pairs, T.broadcast(T.uint16(4), count // 2))
    high = T.reinterpret(shifted, dtype=f"uint8x{count}") & T.broadcast(T.uint8(15), count)
    offset = T.broadcast(T.int8(NIBBLE_OFFSET), count)
    return [T.reinterpret(half, dtype=f"int8x{count}") - offset for half in (low, high)]


Multiply = Callable[[Expr, Sequence[Expr], Sequence[Expr], Expr | None], Expr]
"""(accumulator int32xL, words of activations each broadcast as int32xL, weights int8x(L·P) a word, multiplier int32xL
or None) → new accumulator int32xL."""


def call_llvm(name: str, dtype: str, *arguments: Expr) -> Expr:
    """A call, of result ``dtype``, of the LLVM intrinsic ``name``, which has no side effects."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *arguments, dtype=dtype)


PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
PMADDUBSW = {
    4: "llvm.x86.ssse3.pmadd.ub.sw.128",
    8: "llvm.x86.avx2.pmadd.ub.sw",
    16: "llvm.x86.avx512.pmaddubs.w.512",
}
VPDPBUSD = {8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}


def _pmaddwd(lanes: int) -> Multiply:
    """Widen the weights to int16, multiply pairs: exact, no saturating intermediate (SSE2, AVX2, AVX-512BW).

    An accumulator of uint32 may wrap, one of int32 may not.
    """

    def multiply(
        accumulator: Expr, activations: Sequence[Expr], weights: Sequence[Expr], multiplier: Expr | None
    ) -> Expr:
        assert multiplier is None
        for word, weight in zip(activations, weights, strict=True):
            pair = f"int16x{2 * lanes}"
            product = call_llvm(
                PMADDWD[lanes],
                str(accumulator.ty.dtype),
                T.reinterpret(word, dtype=pair),
                T.cast(weight, pair),
            )
            accumulator = accumulator + product
        return accumulator

    return multiply


def _pmaddubsw(lanes: int) -> Multiply:
    """Multiply u8 by s8 into int16 pair sums, add those of all words in int16, widen once.

    Exact only while the int16 sums hold: words · 2 · 255 · |weight| ≤ 32767 (:func:`intrinsic.words_that_fit`).
    The widening multiply is by one, or by the multiplier in both halves of a lane.
    """

    def multiply(
        accumulator: Expr, activations: Sequence[Expr], weights: Sequence[Expr], multiplier: Expr | None
    ) -> Expr:
        halves = f"int16x{2 * lanes}"
        total: Expr | None = None
        for word, weight in zip(activations, weights, strict=True):
            bytes_ = T.reinterpret(word, dtype=f"int8x{4 * lanes}")
            pairs = call_llvm(PMADDUBSW[lanes], halves, bytes_, weight)
            total = pairs if total is None else total + pairs
        if multiplier is None:
            factor = T.broadcast(T.int16(1), 2 * lanes)
        else:
            both = multiplier | T.shift_left(multiplier, T.broadcast(T.int32(16), lanes))
            factor = T.reinterpret(both, dtype=halves)
        return accumulator + call_llvm(PMADDWD[lanes], f"int32x{lanes}", total, factor)

    return multiply


def _vpdpbusd(lanes: int) -> Multiply:
    """AVX-512 VNNI and AVX-VNNI: four u8×s8 products added to each lane, exact (not the saturating form)."""

    def multiply(
        accumulator: Expr, activations: Sequence[Expr], weights: Sequence[Expr], multiplier: Expr | None
    ) -> Expr:
        total = accumulator if multiplier is None else T.broadcast(T.int32(0), lanes)
        for word, weight in zip(activations, weights, strict=True):
            bytes_ = T.reinterpret(word, dtype=f"uint8x{4 * lanes}")
            total = call_llvm(VPDPBUSD[lanes], f"int32x{lanes}", total, bytes_, weight)
        return total if multiplier is None else accumulator + total * multiplier

    return multiply


_FAMILIES: dict[str, Callable[[int], Multiply]] = {
    "pmaddwd": _pmaddwd,
    "pmaddubsw": _pmaddubsw,
    "vpdpbusd": _vpdpbusd,
}


def multiply_accumulate(
    family: str | None, accumulator: Expr, activations: Expr, weights: Expr, lanes: int
) -> Expr:
    """One word's step outside a tensor intrinsic: ``activations`` are broadcast to the lanes already.

    Without a ``family`` it is plain vector arithmetic.
    """
    if family is None:
        return accumulator + activations * weights
    return _FAMILIES[family](lanes)(accumulator, [activations], [weights], None)


@cache
def register(step: Step) -> str:
    """Register the intrinsic with TVM (once a process) and return its name for ``Schedule.tensorize``."""
    TensorIntrin.register(step.name, _description(step), _implementation(step), override=True)
    return step.name
