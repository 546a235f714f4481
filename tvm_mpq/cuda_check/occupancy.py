"""How many warps of a kernel fit on a multiprocessor at once, and what keeps more from it."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_mpq.cuda_check.limits import Limits

_WARP = 32


@dataclass(frozen=True)
class Occupancy:
    """``blocks`` at once on a multiprocessor, ``warps`` in them, the ``share`` of all it can hold, and the limiter.

    ``limiter`` is "registers", "shared memory", "warps" or "blocks"; "" where not even one block fits.
    """

    blocks: int
    warps: int
    share: float
    limiter: str


def occupancy(limits: Limits, threads: int, registers: int, shared: int) -> Occupancy:
    """Of a kernel with ``threads`` a block, ``registers`` a thread and ``shared`` bytes a block, static and dynamic.

    As NVIDIA's occupancy calculator does it, with the largest shared memory that the multiprocessor can be set to.
    """
    warps = -(-threads // _WARP)
    per_warp = _up(registers * _WARP, limits.register_unit)
    # Each of four parts of the multiprocessor has a quarter of the registers.
    parts = limits.warp_unit
    by_registers = (
        limits.registers // parts // max(per_warp, 1) * parts // warps if registers else limits.blocks
    )
    fits = registers <= limits.registers_thread and per_warp * _up(warps, parts) <= limits.registers
    allocated = _up(shared + limits.shared_reserved, limits.shared_unit)
    by_shared = limits.shared // allocated if allocated else limits.blocks
    counts = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": by_registers if fits else 0,
        "shared memory": by_shared if shared <= limits.shared_block else 0,
    }
    limiter = min(counts, key=lambda name: counts[name])
    blocks = counts[limiter]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, limiter if blocks else "")


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
