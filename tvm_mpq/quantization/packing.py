"""Weights in the order that the kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack_weights(
    w: Array, groups: int, lanes: int, group: int, words: int = 1, nibbles: bool = False
) -> Array:
    """[O, I/groups, R, S] → [groups, blocks, steps, words, lanes, group/words] of the same dtype.

    The reduction runs over r, s, c with c fastest; each kernel row's S·C elements are padded with zeros to a multiple
    of ``group``, and O/groups to blocks·lanes. ``nibbles``: int8 codes in ±7 become uint8 with half the words; a byte
    holds code + 8 of an even word in its low half and of the next word in its high half.
    """
    o, i, r, s = w.shape
    per_group = o // groups
    blocks, run = -(-per_group // lanes), -(-s * i // group) * group
    padded = np.zeros((groups, blocks * lanes, r, run), w.dtype)
    padded[:, :per_group, :, : s * i] = w.transpose(0, 2, 3, 1).reshape(groups, per_group, r, s * i)
    blocked = padded.reshape(groups, blocks, lanes, r * run // group, words, group // words)
    packed = blocked.transpose(0, 1, 3, 4, 2, 5)
    if nibbles:
        raised = (packed + 8).astype(np.uint8)
        packed = raised[:, :, :, 0::2] | raised[:, :, :, 1::2] << 4
    return np.ascontiguousarray(packed)


def pack_factors(factors: Array, groups: int, lanes: int) -> Array:
    """[O, R, groups of a kernel row] int8 → [groups, blocks, R · groups of a kernel row, lanes].

    One where lanes are added.
    """
    o, r, count = factors.shape
    per_group = o // groups
    blocks = -(-per_group // lanes)
    padded = np.ones((groups, blocks * lanes, r * count), np.int8)
    padded[:, :per_group] = factors.reshape(groups, per_group, r * count)
    return np.ascontiguousarray(padded.reshape(groups, blocks, lanes, r * count).transpose(0, 1, 3, 2))


def pack_channels(values: Array, groups: int, lanes: int) -> Array:
    """[O] → [groups, blocks, lanes], zero where lanes are added."""
    per_group = len(values) // groups
    blocks = -(-per_group // lanes)
    padded = np.zeros((groups, blocks * lanes), values.dtype)
    padded[:, :per_group] = values.reshape(groups, per_group)
    return padded.reshape(groups, blocks, lanes)


def pack_depthwise(w: Array) -> Array:
    """[O, 1, R, S] → [R, S, O]."""
    return np.ascontiguousarray(w[:, 0].transpose(1, 2, 0))


def pack_codes(codes: Array, bits: int, columns: int, block: int = 32) -> Array:
    """int8 codes [O, K] of ``bits`` (2 or 4) bits → uint8 [blocks, steps, block · columns · bits / 8].

    For kernels that multiply four elements of the reduction at a time for each of ``columns`` outputs, two vectors of
    them: byte i of a vector holds codes of output i // 4 and element i mod 4. Bit fields from the lowest: that of the
    first vector, the second, and with 2 bits both again for the next four elements. Codes are stored with 2^(bits-1)
    added; outputs are padded to ``columns`` and the reduction to steps of ``block`` elements with codes of zero.
    """
    o, k = codes.shape
    blocks, steps, fields = -(-o // columns), -(-k // block), 8 // bits
    padded = np.zeros((blocks * columns, steps * block), np.int8)
    padded[:o, :k] = codes
    raised = (padded + 2 ** (bits - 1)).astype(np.uint8)
    quads = block // 4 * 2 // fields
    parts = raised.reshape(blocks, 2, columns // 2, steps, quads, fields // 2, 4)
    # blocks, steps, loads, output, element, then the fields: four elements, vector.
    parts = parts.transpose(0, 3, 4, 2, 6, 5, 1).reshape(blocks, steps, quads * columns * 2, fields)
    packed = np.zeros(parts.shape[:-1], np.uint8)
    for field in range(fields):
        packed |= parts[..., field] << (bits * field)
    return packed


def pack_multipliers(multiplier: Array, columns: int) -> Array:
    """uint8 [O, groups] → [blocks, groups, columns], one where outputs are added."""
    o, groups = multiplier.shape
    blocks = -(-o // columns)
    padded = np.ones((blocks * columns, groups), np.uint8)
    padded[:o] = multiplier
    return np.ascontiguousarray(padded.reshape(blocks, columns, groups).transpose(0, 2, 1))
