"""Weights of a 3×3 convolution in the order that the Winograd kernel reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack_winograd(w: Array, channels: int, block: int, group: int, nibbles: bool = False) -> Array:
    """[O, I, 3, 3] → [blocks, 9, channels / group, block, group] of the same dtype.

    Zeros fill the input channels up to ``channels`` (a multiple of ``group``), outputs up to whole blocks.
    The transform is the kernel's, so the package holds 9 numbers a filter and not the 16 transformed ones.
    ``nibbles``: int8 codes in ±7 become uint8 with half the steps; a byte holds code + 8 of an even step in its low
    half and of the next in its high half.
    """
    o, i, r, s = w.shape
    blocks = -(-o // block)
    padded = np.zeros((blocks * block, channels, r * s), w.dtype)
    padded[:o, :i] = w.reshape(o, i, r * s)
    blocked = padded.reshape(blocks, block, channels // group, group, r * s)
    packed = blocked.transpose(0, 4, 2, 1, 3)
    if nibbles:
        raised = (packed + 8).astype(np.uint8)
        packed = raised[:, :, 0::2] | raised[:, :, 1::2] << 4
    return np.ascontiguousarray(packed)
