"""The multiply-accumulate steps of ARM's vector units, four results each.

ARM's instructions take bytes of one sign: where there is no ``usdot``, an 8-bit activation is staged less 128 and the
bias makes up for it, so that what is added up is Σ (x − 128)·w.

- ``sdot`` adds four products to each result; ``usdot`` (i8mm) takes x as it is. A step reads up to four words of
  activations as one vector, of which the instruction picks one.
- ``usmmla`` (i8mm) makes a block of two rows by two lanes of eight products each: :mod:`neon_matrix` has its step.
- ``smull2`` multiplies pairs of bytes into int16, adds a second pair there, and then both halves to the result
  (``sadalp``): 2 · 128 · 127 fits. ``smull4`` and ``smull8`` add as many pairs of smaller codes first. The names with
  ``vmull`` are the same on 32-bit ARM.
- ``fmla`` is the step of floats: four activations read as one vector, each of which meets a vector of weights.
- ``fmla16`` is that of half floats, eight lanes a vector: the products of a step are added in half floats, which rounds
  each sum to 11 bits, and then their sum to float32 results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr

from tvm_mpq.kernels.narrow_weights import widened

LANES = 4
HALF_LANES = 8
HALF_WIDENING = 6
"""Cycles of a vector unit to make eight half floats two vectors of floats and add them: A76 converts in two."""
OFFSET = 128
"""What is taken off an 8-bit activation where an instruction multiplies signed bytes."""
_SUMS = (2, 4, 8)
MATRIX = "usmmla"
HALF = "fmla16"
_DOTS_OF_FOUR = ("sdot", "usdot")
DOTS = (*_DOTS_OF_FOUR, MATRIX)
_DIRECT = (*DOTS, "fmla")
"""Steps that multiply straight into their results."""
_READ_AHEAD = 28
"""The most vectors of results and weights of dot products that leave room for activations read ahead.

A core that runs in order waits for what it has not read ahead, so LLVM moves loads forward for it, and what has no
register then goes to memory: for Cortex-A55 tiles of 11 × 2 need a tenth more cycles a product than those of 10 × 2.
"""
FAMILIES = (
    *DOTS,
    *(f"{name}{sums}" for name in ("smull", "vmull") for sums in _SUMS),
    "fmla",
    HALF,
)
ARM64 = tuple(family for family in FAMILIES if not family.startswith("vmull"))

NeonMultiply = Callable[[Expr, Expr, Sequence[Expr], Expr | None], Expr]
"""(accumulator, a step's activations as one vector, a vector of weights a word, multiplier or None) → accumulator."""


def sums_of(bits: int) -> int:
    """How many pairs of products of −128 … 127 by codes of ``bits`` bits are added in int16: a power of two."""
    most = 32767 // (OFFSET * (2 ** (bits - 1) - 1))
    return max(n for n in _SUMS if n <= most)


def registers(family: str, words: int, rows: int, blocks: int, nibbles: bool, multiplied: bool) -> int:
    """Of vectors, for a tile of ``rows`` × ``blocks``: its results and a step's weights, which all rows meet.

    Products that are added up before they reach a result need room to be in flight: with less, LLVM makes one chain
    after the other (on Cortex-A72 tiles of 16 results are slower than those of 12). So does what unpacks ``nibbles``,
    and sums that are ``multiplied`` before they are added.
    """
    if family == HALF:
        return 2 * rows * blocks + words * blocks + 7
    others = 2 + 4 * (nibbles + multiplied) if family in _DIRECT else 12 if family.startswith("smull") else 6
    return rows * blocks + words * blocks * _vectors(family) + others


def cycles(family: str, words: int, rows: int, blocks: int, nibbles: bool) -> float:
    """Of a step on such a tile, for a core with two vector units, of which one multiplies into int16.

    ``nibbles``: two vectors of weights are unpacked in four instructions. Dot products are counted as Cortex-A55 makes
    them, one a cycle, and nothing beside it: a load and the end of the loop cost half of ``sdot``'s two units or both,
    and a step that unpacks waits before it. To cores that reorder, the tiles that this tells apart are alike.
    """
    tile, vectors = rows * blocks, _vectors(family)
    loads = rows * words / 2 if family == MATRIX else rows
    weights = words * blocks * vectors
    loads += weights / 2 if nibbles else weights
    unpacking = 2 * weights * nibbles
    if family == HALF:
        loads = rows * words / HALF_LANES + words * blocks
        multiplying = tile * (words + HALF_WIDENING) / 2
    elif family in _DIRECT:
        multiplying = (tile * words + unpacking) / 2
    else:
        adding = tile * words * (1 + 1 / int(family[-1])) + rows * words
        multiplying = max(tile * words, (adding + unpacking) / 1.8)
    # Chains of one result follow each other four cycles apart.
    stalls = 0.1 * loads
    if family in _DOTS_OF_FOUR:
        stalls = 0.5 * loads + 0.6 * unpacking + 1 + 2 * max(0, tile + weights - _READ_AHEAD)
    return max(multiplying, loads / 2, 2.0 * words) + stalls


def _vectors(family: str) -> int:
    """Of the weights that meet a word of activations in a block."""
    return 2 if family == MATRIX else 1


def outside(family: str, rows: int, blocks: int) -> float:
    """Cycles of a tile outside its loop: to requantize and store vectors of results, in pairs where there are pairs.

    Loops of dot products are short enough for their first loads and last jump to show.
    """
    return rows * blocks * (2.75 if blocks % 2 == 0 else 3.5) + (10 if family in _DOTS_OF_FOUR else 0)


def signed(code: Expr) -> Expr:
    """A uint8 less 128, as int8."""
    return (code ^ tirx.const(OFFSET, "uint8")).astype("int8")


def multiplication(family: str, words: int, weight: str) -> NeonMultiply:
    """The step of ``family`` with ``words`` words of activations and weights of dtype ``weight``."""
    if family == "fmla":
        return lambda acc, a, weights, _: _floats(acc, a, weights, weight)
    if family == HALF:
        return lambda acc, a, weights, _: _halves(acc, a, weights)
    if family in _DOTS_OF_FOUR:
        return lambda acc, a, weights, factor: _scaled(
            acc, factor, lambda total: _dots(family, total, _words(a, words, 4), weights)
        )
    sums, arm32 = int(family.removeprefix("smull").removeprefix("vmull")), family.startswith("vmull")
    return lambda acc, a, weights, factor: _scaled(
        acc, factor, lambda total: _long(total, _words(a, words, 2), weights, sums, arm32)
    )


def dot(family: str, accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
    """``accumulator`` int32x4 + four products each of int8x16 ``activations`` (``usdot``: uint8x16) and weights.

    ``smull`` and ``plain``, which any target takes, add two products in int16.
    """
    if family == "plain":
        products = T.cast(activations, "int16x16") * T.cast(weights, "int16x16")
        pairs = T.cast(_neighbours(products, 16), "int32x8")
        return accumulator + _neighbours(pairs, 8)
    if family == "smull":
        low, high = (_multiply_long(_half(activations, part), _half(weights, part), False) for part in (0, 1))
        pairs = _call("llvm.aarch64.neon.addp", "int16x8", low, high)
        return _add_pairs(accumulator, pairs, False)
    if family == "sdot":
        # A word in all lanes is no instruction of its own where it is the last operand.
        return _call("llvm.aarch64.neon.sdot", "int32x4", accumulator, weights, activations)
    return _call("llvm.aarch64.neon.usdot", "int32x4", accumulator, activations, weights)


def matrix(accumulator: Expr, activations: Expr, weights: Expr) -> Expr:
    """``accumulator`` int32x4 (2×2) + eight products each of uint8x16 (two rows) and int8x16 (two columns)."""
    return _call("llvm.aarch64.neon.usmmla.v4i32.v16i8", "int32x4", accumulator, activations, weights)


def multiply_pairs(x: Expr, w: Expr, sums: int, arm32: bool) -> Expr:
    """``x`` int32x4 + ``sums`` vectors of products of its own bytes by those of ``w``, added up as a step does."""
    a, b, c = (T.reinterpret(v, dtype="int8x16") for v in (x, w, w + T.broadcast(T.int32(1), LANES)))
    places = [(i, j, v) for v in (b, c) for i, j in ((0, 0), (1, 1), (0, 1), (1, 0))]
    words = [_half(a, i) for i, _, _ in places[:sums]]
    return _long(x, words, [_half(v, j) for _, j, v in places[:sums]], sums, arm32)


def multiply_halves(x: Expr, w: Expr) -> Expr:
    """``x`` int32x4 + products of four int16 of it by as many of ``w``."""
    four = [tirx.const(lane, "int32") for lane in range(4)]
    a, b = (tirx.Shuffle([T.reinterpret(v, dtype="int16x8")], four) for v in (x, w))
    return x + _call("llvm.aarch64.neon.smull.v4i32", "int32x4", a, b)


def _scaled(accumulator: Expr, factor: Expr | None, sums: Callable[[Expr], Expr]) -> Expr:
    if factor is None:
        return sums(accumulator)
    return accumulator + sums(T.broadcast(T.int32(0), LANES)) * factor


def _words(a: Expr, words: int, per_word: int) -> list[Expr]:
    """Each word of the vector ``a`` in all lanes, as bytes."""
    scalar, bytes_ = f"int{8 * per_word}", f"int8x{LANES * per_word}"
    if words == 1:
        return [T.reinterpret(T.broadcast(T.reinterpret(a, dtype=scalar), LANES), dtype=bytes_)]
    vector = T.reinterpret(a, dtype=f"{scalar}x{words}")
    return [T.reinterpret(_pick(vector, word, words), dtype=bytes_) for word in range(words)]


def _pick(vector: Expr, lane: int, count: int, lanes: int = LANES) -> Expr:
    """``lane`` of ``count`` in all lanes of a vector."""
    # TVM makes no vector longer than what it is made of.
    return tirx.Shuffle([vector] * max(1, lanes // count), [tirx.const(lane, "int32")] * lanes)


def _neighbours(vector: Expr, count: int) -> Expr:
    """The sums of the pairs of neighbours in ``vector``."""
    even, odd = (
        tirx.Shuffle([vector], [tirx.const(lane, "int32") for lane in range(first, count, 2)])
        for first in (0, 1)
    )
    return even + odd


def _half(vector: Expr, part: int) -> Expr:
    return tirx.Shuffle([vector], [tirx.const(8 * part + lane, "int32") for lane in range(8)])


def _dots(family: str, total: Expr, words: Sequence[Expr], weights: Sequence[Expr]) -> Expr:
    for word, weight in zip(words, weights, strict=True):
        a = T.reinterpret(word, dtype="uint8x16") if family == "usdot" else word
        total = dot(family, total, a, weight)
    return total


def _long(total: Expr, words: Sequence[Expr], weights: Sequence[Expr], sums: int, arm32: bool) -> Expr:
    products = [_multiply_long(w, a, arm32) for w, a in zip(weights, words, strict=True)]
    for first in range(0, len(products), sums):
        pairs = products[first]
        for product in products[first + 1 : first + sums]:
            pairs = pairs + product
        total = _add_pairs(total, pairs, arm32)
    return total


def _floats(accumulator: Expr, a: Expr, weights: Sequence[Expr], dtype: str) -> Expr:
    for index, weight in enumerate(weights):
        accumulator = accumulator + _pick(a, index, LANES) * widened(weight, dtype, LANES)
    return accumulator


def _halves(accumulator: Expr, a: Expr, weights: Sequence[Expr]) -> Expr:
    """Float32 results + the sum of products in half floats, which LLVM makes ``fmul`` and then ``fmla``."""
    products = [_pick(a, k, len(weights), HALF_LANES) * weight for k, weight in enumerate(weights)]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return accumulator + T.cast(total, f"float32x{HALF_LANES}")


def _multiply_long(a: Expr, b: Expr, arm32: bool) -> Expr:
    name = "llvm.arm.neon.vmulls.v8i16" if arm32 else "llvm.aarch64.neon.smull.v8i16"
    return _call(name, "int16x8", a, b)


def _add_pairs(accumulator: Expr, pairs: Expr, arm32: bool) -> Expr:
    """``accumulator`` + the sums of neighbours in ``pairs``."""
    if arm32:
        return _call("llvm.arm.neon.vpadals", "int32x4", accumulator, pairs)
    return accumulator + _call("llvm.aarch64.neon.saddlp", "int32x4", pairs)


def _call(name: str, dtype: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *arguments, dtype=dtype)
