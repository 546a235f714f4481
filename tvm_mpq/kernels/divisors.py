"""What divides a number of tiles, columns or blocks: how tasks can share them out evenly."""

from __future__ import annotations


def divisors(value: int) -> list[int]:
    """The divisors of ``value``, in order."""
    return [d for d in range(1, value + 1) if value % d == 0]
