"""Numbers of a few bits in a dense stream of bytes: number i has the bits i·b … i·b + b - 1, the lowest bit first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def stream_bytes(count: int, bits: int) -> int:
    """The bytes that ``count`` numbers of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack_bits(values: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """``values`` (any shape, in C order) as a stream uint8 [stream_bytes]; negative ones in two's complement.

    Raises ValueError for values that ``bits`` bits (1 to 8) cannot hold.
    """
    wide = values.reshape(-1).astype(np.int64)
    if not 1 <= bits <= 8 or (wide < -(1 << (bits - 1))).any() or (wide >= 1 << bits).any():
        raise ValueError(f"some values do not fit {bits} bits")
    each = np.unpackbits(wide.astype(np.uint8)[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(each, bitorder="little")


def unpack_bits(
    stream: npt.NDArray[np.uint8], bits: int, count: int, signed: bool = False
) -> npt.NDArray[np.integer]:
    """The first ``count`` numbers of ``bits`` bits of a stream: uint8 [count], or int8 where ``signed``.

    Raises ValueError for a stream that is too short.
    """
    if len(stream) < stream_bytes(count, bits):
        raise ValueError(f"{len(stream)} bytes cannot hold {count} numbers of {bits} bits")
    each = np.unpackbits(stream, count=count * bits, bitorder="little").reshape(count, bits)
    values = np.packbits(each, axis=1, bitorder="little")[:, 0]
    if not signed:
        return values
    return (values << np.uint8(8 - bits)).view(np.int8) >> (8 - bits)
