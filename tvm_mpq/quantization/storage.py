"""Integer weights as a package stores them: bits without gaps, in the order of the reduction, the same everywhere."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.bitstream import pack_bits, stream_bytes
from tvm_mpq.quantization.groups import Grouping, reduction_rows
from tvm_mpq.quantization.weights import QuantizedWeights, largest_multiplier


@dataclass(frozen=True)
class Expansion:
    """Where an operator's weights [O, C, R, S] are in a stream of bytes, and how its reduction is cut.

    ``start`` is the first byte of its codes: O·``rows``·``row`` numbers of ``bits`` bits, the reduction of each
    output channel in order, ``row`` elements a kernel row. ``channels`` counts the output channels of a group of the
    convolution. Multipliers less one, of ``multiplier_bits`` bits, begin ``multiplier_start`` bytes behind ``start``.
    A channel has ``count`` of them, one for each ``size`` elements of a line of ``line`` (see
    :class:`~tvm_mpq.quantization.groups.Grouping`).
    """

    start: int
    bits: int
    channels: int
    rows: int
    row: int
    multiplier_start: int = 0
    multiplier_bits: int = 1
    line: int = 1
    size: int = 1
    count: int = 1

    def array(self) -> npt.NDArray[np.int32]:
        """The fields as the expanding kernels take them, int32 [10]."""
        return np.array(astuple(self), np.int32)


def multiplier_bits(bits: int) -> int:
    """The bits of a stored multiplier (less one) of ``bits``-bit weights: 5 for 4 bits, 7 for 2."""
    return (largest_multiplier(bits) - 1).bit_length()


def stored_bytes(quantized: QuantizedWeights) -> int:
    """The bytes that :func:`store` makes of ``quantized``: codes, and multipliers where they differ from 1."""
    codes = stream_bytes(quantized.codes.size, quantized.bits)
    if not quantized.effective_group:
        return codes
    assert quantized.multiplier is not None
    return codes + stream_bytes(quantized.multiplier.size, multiplier_bits(quantized.bits))


def store(
    quantized: QuantizedWeights, groups: int, cut: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], Expansion]:
    """The stream uint8 [stored_bytes] of the weights of a convolution of ``groups`` groups, and how to read it.

    ``cut`` are ``rows`` and ``row`` of the :class:`Expansion`: any factors of the length of the reduction.
    """
    codes = pack_bits(reduction_rows(quantized.codes), quantized.bits)
    channels = len(quantized.codes) // groups
    if not quantized.effective_group:
        return codes, Expansion(0, quantized.bits, channels, *cut)
    assert quantized.multiplier is not None
    bits = multiplier_bits(quantized.bits)
    grouping = Grouping.of(quantized.codes.shape, quantized.group)
    expansion = Expansion(
        0, quantized.bits, channels, *cut, len(codes), bits, grouping.line, grouping.size, grouping.count
    )
    return np.concatenate([codes, pack_bits(quantized.multiplier - 1, bits)]), expansion
