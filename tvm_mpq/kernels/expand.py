"""Kernels that expand bit-packed weights to what the other kernels read; they run once, when a package is loaded.

All weights of a network lie in one stream of bytes. A kernel reads numbers of any bits from it (as
``quantization.bitstream`` writes them) and puts them where a layout wants them. What it must know of the operator is
an argument (:class:`Expansion`) and its shapes are variables, so that a package has one kernel a form, and not one an
operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Literal

from tvm import te, tirx
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.quantization.storage import Expansion

ExpandForm = Literal["codes", "multiplied", "nibbles", "multipliers"]

ATTRIBUTE = "mpq.expand"
"""On a kernel of this module: its form."""


def expand(form: ExpandForm, fixed: Sequence[int] | None = None) -> PrimFunc:
    """The kernel (stream uint8 [bytes], expansion int32 [10]) → weights, marked with its form.

    Its extents are variables, or those that are ``fixed``: a GPU divides a thread's number by all of them.

    - ``codes``: int8 [groups, blocks, R, steps, words, lanes, per word]: element (step·words + word)·per_word + i of
      kernel row r for output channel block·lanes + lane of the group, zero where there is none. All layouts of weights
      are this with some extents 1.
    - ``multiplied``: the same, each code times its multiplier.
    - ``nibbles``: uint8, half the words: code + 8 of an even word in the low half of a byte, of the next in the high.
    - ``multipliers``: int8 [groups, blocks, R, groups of a kernel row, lanes], one where there is no channel.
    """
    names = ["groups", "blocks", "rows", "steps", "words", "lanes", "per_word"]
    if form == "multipliers":
        names = ["groups", "blocks", "rows", "row_groups", "lanes"]
    extents: list[Expr] = [tirx.Var(name, "int64") for name in names]
    if fixed is not None:
        extents = [tirx.const(extent, "int64") for extent in fixed]
    stream = te.placeholder((tirx.Var("bytes", "int64"),), "uint8", "stream")
    expansion = te.placeholder((len(fields(Expansion)),), "int32", "expansion")
    read = _Reader(stream, expansion)
    makers: dict[ExpandForm, Callable[..., Expr]] = {
        "codes": lambda *at: _code(read, extents, at),
        "multiplied": lambda *at: _code(read, extents, at, multiplied=True),
        "nibbles": lambda *at: _nibbles(read, extents, at),
        "multipliers": lambda *at: _multiplier(read, extents, at),
    }
    result = te.compute(extents, lambda *at: makers[form](*at), "weights")
    return te.create_prim_func([stream, expansion, result]).with_attr(ATTRIBUTE, form)


class _Reader:
    """The numbers of a stream, and the fields of the expansion by name."""

    def __init__(self, stream: te.Tensor, expansion: te.Tensor) -> None:
        self._stream = stream
        self.field = {field.name: expansion[i].astype("int64") for i, field in enumerate(fields(Expansion))}

    def number(self, start: Expr, bits: Expr, index: Expr) -> Expr:
        """Number ``index`` of ``bits`` bits of the stream from byte ``start`` on, int32 and not negative."""
        first = index * bits
        byte, shift = start + (first >> 3), first & 7
        low = self._stream[byte].astype("int32")
        high = te.if_then_else(
            shift + bits > 8, self._stream[byte + 1].astype("int32"), tirx.const(0, "int32")
        )
        wide = (low | (high << 8)) >> shift.astype("int32")
        return wide & ((tirx.const(1, "int32") << bits.astype("int32")) - 1)

    def code(self, index: Expr) -> Expr:
        """Code ``index``, int32."""
        f = self.field
        unsigned = self.number(f["start"], f["bits"], index)
        half = tirx.const(1, "int32") << (f["bits"] - 1).astype("int32")
        return (unsigned ^ half) - half

    def multiplier(self, channel: Expr, position: Expr) -> Expr:
        """The multiplier of the element at ``position`` of the reduction of ``channel``, int32."""
        f = self.field
        per_line = (f["line"] + f["size"] - 1) // f["size"]
        group = position // f["line"] * per_line + position % f["line"] // f["size"]
        start = f["start"] + f["multiplier_start"]
        return self.number(start, f["multiplier_bits"], channel * f["count"] + group) + 1


def _code(
    read: _Reader,
    extents: list[Expr],
    at: tuple[Expr, ...],
    multiplied: bool = False,
    word: Expr | None = None,
) -> Expr:
    g, n, r, step, w, lane, i = at
    _, _, _, _, words, lanes, per_word = extents
    f = read.field
    if word is not None:
        w, words = word, words * 2
    element = (step * words + w) * per_word + i
    within = n * lanes + lane
    channel = g * f["channels"] + within
    position = r * f["row"] + element
    value = read.code(channel * f["rows"] * f["row"] + position)
    if multiplied:
        value = value * read.multiplier(channel, position)
    there = te.all(within < f["channels"], element < f["row"])
    return te.if_then_else(there, value, tirx.const(0, "int32")).astype("int8")


def _nibbles(read: _Reader, extents: list[Expr], at: tuple[Expr, ...]) -> Expr:
    low, high = (_code(read, extents, at, word=at[4] * 2 + half).astype("int32") + 8 for half in (0, 1))
    return (low | (high << 4)).astype("uint8")


def _multiplier(read: _Reader, extents: list[Expr], at: tuple[Expr, ...]) -> Expr:
    g, n, r, j, lane = at
    f = read.field
    within = n * extents[4] + lane
    value = read.multiplier(g * f["channels"] + within, r * f["row"] + j * f["size"])
    there = within < f["channels"]
    return te.if_then_else(there, value, tirx.const(1, "int32")).astype("int8")
