"""Loops that do one thing only as fast as it goes, for :mod:`tvm_mpq.cost.peaks` to time.

A multiplication loop keeps its accumulators in registers, enough of them to hide a step's latency, and multiplies
each by itself: nothing is loaded, and nothing can be moved out of the loop or left away. Reading adds up floats
with eight accumulators.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels import neon
from tvm_mpq.kernels.amx_instructions import LANES, MOST_BYTES, ROWS

_OF_WORDS = ("pmaddubsw", "smull", "vmull")
_KINDS = ("fma", "mul", "mullo", "pmaddwd", "vpdpbusd", "sdot", "usdot", "usmmla", "smlal", *_OF_WORDS)
TILES = "tdpbusd"
"""The step on tiles, which are no values: its loop is that of :mod:`tvm_mpq.cost.tile_loop`."""
READERS = 8
READ_LANES = 8


@dataclass(frozen=True)
class Step:
    """``macs`` multiply-accumulates on a vector of ``lanes`` accumulators: (accumulator, operand) → new."""

    macs: int
    dtype: str
    lanes: int
    apply: Callable[[Expr, Expr], Expr]


def find_step(name: str) -> Step:
    """The step of a name such as ``pmaddwd256`` or ``pmaddubsw256x4`` (so many before the sum is widened).

    Raises ValueError for a name without a loop.
    """
    if name == TILES:
        return Step(ROWS * LANES * MOST_BYTES, "int32", LANES, lambda x, _: x)
    match = re.fullmatch(rf"({'|'.join(_KINDS)})(128|256|512)(?:x(\d+))?", name)
    if match is None or (match[3] is None) == (match[1] in _OF_WORDS):
        raise ValueError(f"no loop measures the step {name!r}")
    kind, bits = match[1], int(match[2])
    lanes = bits // 32
    if kind in ("fma", "mul"):
        return Step(lanes, "float32", lanes, lambda x, w: x * w + w)
    if kind == "mullo":
        # A maximum in the addition's place: LLVM would make one multiplication of x + x·w.
        return Step(lanes, "int32", lanes, lambda x, w: T.max(x * w, w))
    if kind == "pmaddwd":
        return Step(2 * lanes, "int32", lanes, lambda x, w: x + _pmaddwd(lanes, x, w))
    if kind in ("sdot", "usdot"):
        return Step(4 * lanes, "int32", lanes, lambda x, w: _dot(kind, x, w))
    if kind == "usmmla":
        return Step(8 * lanes, "int32", lanes, _matrix)
    if kind == "smlal":
        return Step(lanes, "int32", lanes, neon.multiply_halves)
    if kind in ("smull", "vmull"):
        sums = int(match[3])
        return Step(
            2 * lanes * sums, "int32", lanes, lambda x, w: neon.multiply_pairs(x, w, sums, kind == "vmull")
        )
    if kind == "pmaddubsw":
        words = int(match[3])
        return Step(4 * lanes * words, "int32", lanes, lambda x, w: _pmaddubsw(lanes, words, x, w))
    return Step(4 * lanes, "int32", lanes, lambda x, w: _vpdpbusd(lanes, x, w))


def multiplications(name: str) -> int:
    """How many of a step's instructions need a multiplier: what bounds it where additions have units of their own."""
    step = find_step(name)
    if name == TILES:
        return 32  # sixteen cycles of the time of two multipliers
    if name.startswith(("smull", "vmull")):
        return step.macs // (2 * step.lanes)
    return step.macs // (4 * step.lanes) + 1 if name.startswith("pmaddubsw") else 1


def _dot(kind: str, x: Expr, w: Expr) -> Expr:
    a = T.reinterpret(w, dtype="uint8x16" if kind == "usdot" else "int8x16")
    return neon.dot(kind, x, a, T.reinterpret(w, dtype="int8x16"))


def _matrix(x: Expr, w: Expr) -> Expr:
    return neon.matrix(x, T.reinterpret(w, dtype="uint8x16"), T.reinterpret(w, dtype="int8x16"))


def _pmaddwd(lanes: int, x: Expr, w: Expr) -> Expr:
    name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
    pairs = f"int16x{2 * lanes}"
    return _call(name, f"int32x{lanes}", T.reinterpret(x, dtype=pairs), T.reinterpret(w, dtype=pairs))


def _pmaddubsw(lanes: int, words: int, x: Expr, w: Expr) -> Expr:
    """The int16 sums of ``words`` products, each of another operand so that none is left away, widened and added."""
    name = {4: "ssse3.pmadd.ub.sw.128", 8: "avx2.pmadd.ub.sw", 16: "avx512.pmaddubs.w.512"}[lanes]
    quads, pairs = f"int8x{4 * lanes}", f"int16x{2 * lanes}"
    # Each sum is used twice: without a name for it, sixteen words would be 65 thousand expressions.
    sums = [tirx.Var(f"sum{word}", pairs) for word in range(words)]
    values: list[Expr] = []
    for word in range(words):
        left = x if word == 0 else T.reinterpret(sums[word - 1], dtype=f"int32x{lanes}")
        operands = T.reinterpret(left, dtype=f"u{quads}"), T.reinterpret(w, dtype=quads)
        product = _call(name, pairs, *operands)
        values.append(product if word == 0 else sums[word - 1] + product)
    result = x + _pmaddwd(lanes, T.reinterpret(sums[-1], dtype=f"int32x{lanes}"), w)
    for variable, value in zip(reversed(sums), reversed(values), strict=True):
        result = tirx.Let(variable, value, result)
    return result


def _vpdpbusd(lanes: int, x: Expr, w: Expr) -> Expr:
    quads = f"int8x{4 * lanes}"
    name = f"avx512.vpdpbusd.{32 * lanes}"
    return _call(
        name, f"int32x{lanes}", x, T.reinterpret(x, dtype=f"u{quads}"), T.reinterpret(w, dtype=quads)
    )


def _call(name: str, dtype: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}"), *arguments, dtype=dtype)


def multiply_loop(step: Step, accumulators: int, threads: int) -> PrimFunc:
    """Each thread applies ``step`` ``count`` times: weights [2, lanes] (operand, start), out, count."""
    apply, dtype, lanes = step.apply, step.dtype, step.lanes
    vector = f"{dtype}x{lanes}"

    @T.prim_func(s_tir=True)
    def main(
        weights: T.Buffer((2, lanes), dtype),
        out: T.Buffer((threads, accumulators * lanes), dtype),
        count: T.int32,
    ) -> None:
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        for thread in T.parallel(threads):
            acc = T.decl_buffer((accumulators * lanes,), dtype, scope="local")
            for a in T.unroll(accumulators):
                acc[T.ramp(a * lanes, 1, lanes)] = weights.vload([1, 0], vector)
            for _ in T.serial(count):
                for a in T.unroll(accumulators):
                    acc[T.ramp(a * lanes, 1, lanes)] = apply(
                        acc[T.ramp(a * lanes, 1, lanes)], weights.vload([0, 0], vector)
                    )
            for a in T.unroll(accumulators):
                out[thread, T.ramp(a * lanes, 1, lanes)] = acc[T.ramp(a * lanes, 1, lanes)]

    return main


def read_loop(floats: int, threads: int) -> PrimFunc:
    """Each thread reads its own ``chunks`` of 64 floats ``count`` times: data [floats], out, chunks, count."""
    width = READ_LANES

    @T.prim_func(s_tir=True)
    def main(
        data: T.Buffer((floats,), "float32"),
        out: T.Buffer((threads, READERS * width), "float32"),
        chunks: T.int32,
        count: T.int32,
    ) -> None:
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        for thread in T.parallel(threads):
            acc = T.decl_buffer((READERS * width,), "float32", scope="local")
            for a in T.unroll(READERS):
                acc[T.ramp(a * width, 1, width)] = T.broadcast(T.float32(0), width)
            for _ in T.serial(count):
                for chunk in T.serial(chunks):
                    for a in T.unroll(READERS):
                        acc[T.ramp(a * width, 1, width)] = (
                            acc[T.ramp(a * width, 1, width)]
                            + data[T.ramp(((thread * chunks + chunk) * READERS + a) * width, 1, width)]
                        )
            for a in T.unroll(READERS):
                out[thread, T.ramp(a * width, 1, width)] = acc[T.ramp(a * width, 1, width)]

    return main
