"""What NVIDIA's compiler made of kernels: resources and instructions, as ``cuobjdump`` prints them."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tvm_mpq.cuda.nvcc import find_tool
from tvm_mpq.errors import MpqError

_FATBIN = 0xBA55ED50
_PACKAGES = {"cuobjdump": "nvidia-cuda-cuobjdump", "nvdisasm": "nvidia-cuda-nvdisasm"}

_SYSTEM_SHARED = 1024
"""From compute capability 9.0 the code itself says that the system has a part of every block's shared memory."""

INSTRUCTIONS = {
    **{"IMMA": r"IMMA\.", "IMMA U4": r"IMMA\.\d+\.U4\.", "HMMA": r"HMMA\.", "dp4a": r"IDP\.4A\."},
    **{
        "FFMA": r"FFMA\b",
        "HFMA2": r"HFMA2\b(?!\.MMA)",
        "HADD2": r"HADD2\b(?!\.F32)",
        "I2F": r"I2F",
        "IMAD": r"IMAD(?!\.(MOV|SHL|IADD))\b",
    },
    **{
        "LDG 1": r"LDG\b.*\.[US]8",
        "LDG 2": r"LDG\b.*\.[US]16",
        "LDG 4": r"LDG\b(?!.*\.([US]8|[US]16|64|128))",
    },
    **{"LDG 8": r"LDG\b.*\.64", "LDG 16": r"LDG\b.*\.128", "STG": r"STG\b"},
    **{
        "LDS": r"LDS\b",
        "STS": r"STS\b",
        "LDL": r"LDL\b",
        "STL": r"STL\b",
        "BAR": r"BAR\b",
        "SHFL": r"SHFL\b",
    },
}
"""Kinds of instructions and their spelling, loads with the bytes that a thread gets.

IMMA are all of integers, "IMMA U4" those of them that multiply four bits.
LDL and STL are what spilled registers and local arrays cost.
"""


@dataclass(frozen=True)
class KernelCode:
    """One kernel for one architecture.

    ``registers`` of a thread; ``stack``, ``local`` and ``shared`` (static) in bytes; ``threads`` of a block at most
    (0: not said); how often each kind of :data:`INSTRUCTIONS` is in the code, and all instructions.
    """

    name: str
    architecture: str
    registers: int
    stack: int
    local: int
    shared: int
    threads: int
    instructions: Mapping[str, int]
    total: int

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.instructions.get("LDL", 0) + self.instructions.get("STL", 0)


def fatbins(content: bytes) -> list[bytes]:
    """The fat binaries in a library or other file."""
    found, at, mark = [], 0, struct.pack("<I", _FATBIN)
    while (at := content.find(mark, at)) >= 0:
        version, header, size = (
            struct.unpack_from("<HHQ", content, at + 4) if at + 16 <= len(content) else (0, 0, 0)
        )
        if version == 1 and header == 16 and at + header + size <= len(content):
            found.append(content[at : at + header + size])
            at += header + size
        else:
            at += 4
    return found


def kernel_codes(fatbin: bytes) -> list[KernelCode]:
    """All kernels for all architectures in a fat binary, or in the code of one architecture (a cubin).

    Raises MpqError where CUDA's tools are missing or fail.
    """
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as folder:
        path = Path(folder) / "kernels.fatbin"
        path.write_bytes(fatbin)
        resources = parse_resources(_dump("-res-usage", path))
        listed = parse_assembly(_dump("-sass", path))
        bounds = parse_bounds(_dump("-elf", path))
    return [
        _code(key, numbers, bounds.get(key, 0), listed.get(key, ({}, 0)))
        for key, numbers in sorted(resources.items())
    ]


def _code(
    key: tuple[str, str], numbers: Mapping[str, int], threads: int, listed: tuple[Mapping[str, int], int]
) -> KernelCode:
    architecture, name = key
    says_all = int(re.sub(r"\D", "", architecture)) >= 90
    shared = numbers["SHARED"]
    if says_all and shared:
        shared -= _SYSTEM_SHARED
    stack, local = numbers["STACK"], numbers["LOCAL"]
    counts = {kind: listed[0][kind] for kind in INSTRUCTIONS if kind in listed[0]}
    return KernelCode(name, architecture, numbers["REG"], stack, local, shared, threads, counts, listed[1])


def parse_resources(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """``cuobjdump -res-usage``: (architecture, kernel) → REG, STACK, SHARED, LOCAL."""
    found, architecture, name = {}, "", ""
    for line in text.splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif "REG:" in line:
            found[architecture, name] = {
                key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", line)
            }
    return found


def parse_assembly(text: str) -> dict[tuple[str, str], tuple[dict[str, int], int]]:
    """``cuobjdump -sass``: (architecture, kernel) → how often each of :data:`INSTRUCTIONS` is there, and all."""
    found: dict[tuple[str, str], tuple[dict[str, int], int]] = {}
    architecture, counts, total = "", Counter[str](), 0
    for line in text.splitlines():
        if match := re.match(r"\s*code for (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            counts, total = Counter(), 0
            key = architecture, match[1]
            found[key] = ({}, 0)
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([^;]+);", line):
            operation = match[1].split()[0]
            total += operation != "NOP"
            counts.update(kind for kind, form in INSTRUCTIONS.items() if re.match(form, operation))
            found[key] = (dict(counts), total)
    return found


def parse_bounds(text: str) -> dict[tuple[str, str], int]:
    """``cuobjdump -elf``: (architecture, kernel) → the threads of a block that the code was compiled for."""
    found: dict[tuple[str, str], int] = {}
    architecture = name = attribute = ""
    for line in text.splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\.nv\.info(?:\.(\S+))?\s*$", line):
            name = match[1] or ""
        elif match := re.match(r"\s*Attribute:\s+(\S+)", line):
            attribute = match[1]
        elif name and attribute == "EIATTR_MAX_THREADS" and (match := re.match(r"\s*Value:\s+(.*)", line)):
            extents = [int(value, 16) for value in match[1].split()[:3]]
            found[architecture, name] = extents[0] * extents[1] * extents[2]
    return found


def _dump(what: str, path: Path) -> str:
    tools = {name: find_tool(name) for name in _PACKAGES}
    missing = [name for name, found in tools.items() if found is None]
    if missing:
        packages = " ".join(_PACKAGES[name] for name in missing)
        raise MpqError(
            f"no {' and no '.join(missing)} found: put them on PATH, or install them with 'pip install {packages}'"
        )
    # cuobjdump looks for nvdisasm on PATH.
    folders = [str(Path(str(found)).parent) for found in tools.values()]
    environment = {**os.environ, "PATH": os.pathsep.join([*folders, os.environ.get("PATH", "")])}
    command = [str(tools["cuobjdump"]), what, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MpqError(f"{command[0]} failed: {said}")
    return done.stdout
