"""How a thread block of a tensor-core kernel is cut, and how large for how many results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FRAGMENT = 16
"""Rows, columns and depth of the matrices that one warp's multiplication takes."""
WARP = 32
PART = 4
"""Without tensor cores a thread makes so many rows × so many columns,"""
STEP = 16
"""from so much of the reduction at a time."""


@dataclass(frozen=True)
class CudaTile:
    """A thread block makes ``rows`` × ``columns`` results, ``depth`` fragments of the reduction at a time.

    Its warps stand ``warp_rows`` × ``warp_columns``; each has an equal part of the results, in fragments. ``ahead``:
    what it multiplies next is loaded meanwhile (see ``stages``). ``int4``: by int4 tensor cores (see ``int4_core``).
    """

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    ahead: bool = False
    int4: bool = False

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self.warp_rows * self.warp_columns

    @property
    def fragments(self) -> tuple[int, int]:
        """Rows and columns of fragments that a warp has."""
        return (
            self.rows // (FRAGMENT * self.warp_rows),
            self.columns // (FRAGMENT * self.warp_columns),
        )


TENSOR_CORE = ("imma", "imma4", "hmma")
"""Families of the table's rows that multiply fragments: of bytes, by four bits, and of half floats."""
_BLOCKS = 64
"""So many thread blocks keep small and large GPUs busy; fewer are made smaller while they can be."""


def spread_tile(rows: int, columns: int, depth: int, count: Callable[[int, int], int]) -> CudaTile:
    """Up to 64 × 64 of ``rows`` × ``columns`` results; less, down to 32, where ``count`` of such blocks were few."""
    tall, wide = (min(64, FRAGMENT * _power_of_two(-(-extent // FRAGMENT))) for extent in (rows, columns))
    while count(tall, wide) < _BLOCKS and max(tall, wide) > 32:
        if tall >= wide:
            tall //= 2
        else:
            wide //= 2
    warp_rows, warp_columns = (2 if extent > FRAGMENT else 1 for extent in (tall, wide))
    return CudaTile(tall, wide, depth, warp_rows, warp_columns)


def _power_of_two(value: int) -> int:
    """The least power of two that is not below ``value``."""
    return 1 << max(0, (value - 1).bit_length())
