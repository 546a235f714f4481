"""What this machine's processor is and can do, as Linux tells it."""

from __future__ import annotations

import ctypes
import functools
import platform
from pathlib import Path

_AMX = frozenset(("amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "amx_complex"))
_ARCH_PRCTL, _ASK_FOR_STATE, _TILE_DATA = 158, 0x1023, 18
"""Linux's system call and its arguments (``asm/prctl.h``)."""
# The levels of the x86-64 psABI in the spelling of /proc/cpuinfo (LZCNT is ``abm`` there).
X86_64_V2 = ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")
X86_64_V3 = (*X86_64_V2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")
X86_64_V4 = (*X86_64_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def cpu_features() -> frozenset[str]:
    """The processor's feature flags in the spelling of /proc/cpuinfo; AMX's only where it may be used."""
    fields = _cpuinfo()
    if "isa" in fields:
        # RISC-V: rv64imafdc_zicsr_…
        letters, *longer = fields["isa"].removeprefix("rv64").removeprefix("rv32").split("_")
        return frozenset((*letters, *longer))
    flags = frozenset((fields.get("flags") or fields.get("Features") or "").split())
    return flags if "amx_tile" not in flags or _tiles_allowed() else flags - _AMX


@functools.cache
def _tiles_allowed() -> bool:
    """Whether Linux lets this process use AMX's tiles, for which it has to ask: a virtual machine may refuse."""
    libc = ctypes.CDLL(None)
    return int(libc.syscall(_ARCH_PRCTL, _ASK_FOR_STATE, _TILE_DATA)) == 0


def cpu_name() -> str:
    """The processor's model name, or the machine's architecture where Linux gives none."""
    return _cpuinfo().get("model name") or platform.machine()


def cache_bytes(level: int) -> int:
    """Bytes of the first processor's data cache of ``level`` (2, or 3 for the last); common ones where Linux is silent.

    A machine without the third level has the second as its last.
    """
    assumed = {2: 512 * 1024, 3: 8 * 1024 * 1024}
    found = {}
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (entry / "type").read_text().strip() != "Instruction":
                size = (entry / "size").read_text().strip()
                found[int((entry / "level").read_text())] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return found.get(level) or found.get(2) or assumed[level]
