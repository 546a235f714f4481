"""What a streaming multiprocessor holds, by compute capability."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_mpq.errors import MpqError


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor: threads, warps, blocks, 32-bit registers, bytes of shared memory.

    ``shared_block`` is the most that one block may have; ``shared_reserved`` bytes more of each are the system's.
    From the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; registers are handed out to
    warps in units of 256, shared memory in units of 128 bytes, warps in fours.
    """

    threads: int
    warps: int
    blocks: int
    registers: int
    shared: int
    shared_block: int
    shared_reserved: int
    registers_thread: int = 255
    register_unit: int = 256
    shared_unit: int = 128
    warp_unit: int = 4


_KB = 1024
LIMITS = {
    75: Limits(1024, 32, 16, 65536, 64 * _KB, 64 * _KB, 0, shared_unit=256),
    80: Limits(2048, 64, 32, 65536, 164 * _KB, 163 * _KB, _KB),
    86: Limits(1536, 48, 16, 65536, 100 * _KB, 99 * _KB, _KB),
    87: Limits(1536, 48, 16, 65536, 164 * _KB, 163 * _KB, _KB),
    89: Limits(1536, 48, 24, 65536, 100 * _KB, 99 * _KB, _KB),
    90: Limits(2048, 64, 32, 65536, 228 * _KB, 227 * _KB, _KB),
}
"""By compute capability × 10."""


def limits(architecture: str) -> Limits:
    """Those of ``sm_80`` and the like; raises MpqError for one that is not in the table."""
    number = architecture.removeprefix("sm_").rstrip("a")
    if not number.isdigit() or int(number) not in LIMITS:
        known = ", ".join(f"sm_{each}" for each in LIMITS)
        raise MpqError(f"the limits of {architecture} are not known; known are {known}")
    return LIMITS[int(number)]
