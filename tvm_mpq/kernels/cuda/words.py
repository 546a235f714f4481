"""Words and the bytes in them: what dp4a multiplies, and how codes come to lie so."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr

from tvm_mpq.kernels.neon import OFFSET

_EACH = 0x01010101


def elements(value: Expr, lanes: int) -> list[Expr]:
    """Of a vector of ``lanes``, one by one."""
    return [tirx.Shuffle([value], [T.int32(i)]) for i in range(lanes)] if lanes > 1 else [value]


def flipped(word: Expr) -> Expr:
    """Four uint8, less 128, as four int8 in an int32."""
    return T.reinterpret(word ^ T.uint32(OFFSET * _EACH), dtype="int32")


def codes_of_nibbles(word: Expr, high: int) -> Expr:
    """The low, or high, halves of a word's four bytes less eight, as four int8 in an int32."""
    half = nibbles(word, 4 * high)
    # 0x78 … 0x87 and then the sign turned over: −8 … 7, and no byte borrows from another.
    return T.reinterpret((half + T.uint32(0x78 * _EACH)) ^ T.uint32(0x80 * _EACH), dtype="int32")


def nibbles(word: Expr, shift: int | Expr) -> Expr:
    """The low (``shift`` 0), or high (4), halves of a word's four bytes, as the low ones."""
    return T.bitwise_and(T.shift_right(word, T.cast(shift, "uint32")), T.uint32(0x0F * _EACH))


def halves_of_bytes(word: Expr, offset: int, factor: Expr | None) -> list[Expr]:
    """A word's four bytes less ``offset`` (times ``factor``, a float16) as float16, in two words.

    Exact: a half float of 1024 and up to 255 more has a byte as its low one, and products are within a byte's range.
    """
    result = []
    for selector in (0x4140, 0x4342):
        pair = T.reinterpret(T.bind(_picked(word, T.uint32(0x64 * _EACH), selector)), dtype="float16x2")
        pair = pair - T.broadcast(T.float16(1024.0 + offset), 2)
        if factor is not None:
            pair = pair * T.broadcast(factor, 2)
        result.append(T.bind(T.reinterpret(pair, dtype="uint32")))
    return result


def dot(activations: Expr, codes: Expr, total: Expr) -> Expr:
    """``total`` and the four products of two words of int8."""
    return T.call_pure_extern("int32", "__dp4a", activations, codes, total)


def transposed(words: list[Expr]) -> list[Expr]:
    """Word i of the result is byte i of each of four words, in their order."""
    low, high = 0x5140, 0x7362  # bytes 0 and 1 of two words in turn; bytes 2 and 3
    pairs = [
        [T.bind(_picked(words[first], words[first + 1], which)) for first in (0, 2)] for which in (low, high)
    ]
    return [
        _picked(first, last, selector) for first, last in pairs for selector in (0x5410, 0x7632)
    ]  # fmt: skip


def _picked(a: Expr, b: Expr, selector: int) -> Expr:
    """Bytes of two words (0 … 3 and 4 … 7), one for each hexadecimal digit from the lowest."""
    return T.call_pure_extern("uint32", "__byte_perm", a, b, T.uint32(selector))
