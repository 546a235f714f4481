"""The table of a package's kernels: resources, instructions, and how many fit on a multiprocessor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tvm_mpq.cuda_check.limits import limits
from tvm_mpq.cuda_check.machine_code import KernelCode, fatbins, kernel_codes
from tvm_mpq.cuda_check.occupancy import Occupancy, occupancy
from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.package import Package


@dataclass(frozen=True)
class KernelRow:
    """A kernel's machine code, the dynamic shared memory of its launch in bytes, and its occupancy.

    ``occupancy`` is None where the code does not say how many threads a block has.
    """

    code: KernelCode
    dynamic: int
    occupancy: Occupancy | None

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        spills = {"spills": self.code.spills, "dynamic_shared": self.dynamic}
        return {
            **asdict(self.code),
            **spills,
            "occupancy": None if self.occupancy is None else asdict(self.occupancy),
        }


def kernel_rows(code: bytes, dynamic: Mapping[str, int] | None = None) -> list[KernelRow]:
    """The kernels of a fat binary, for each architecture in it.

    ``dynamic`` is the dynamic shared memory of kernels that are launched with any, in bytes. Raises MpqError without
    CUDA's tools and for an architecture whose limits are not known.
    """
    rows = []
    for kernel in kernel_codes(code):
        extra = (dynamic or {}).get(kernel.name, 0)
        shared = kernel.shared + extra
        fits = None
        if kernel.threads:
            fits = occupancy(limits(kernel.architecture), kernel.threads, kernel.registers, shared)
        rows.append(KernelRow(kernel, extra, fits))
    return rows


def code_of(path: Path) -> bytes:
    """The GPU's code in a package, a library, a fat binary or a cubin; raises MpqError where there is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MpqError(f"cannot read {path}: {error.strerror}") from None
    if content.startswith(b"\x7fELF") and int.from_bytes(content[18:20], "little") == _CUBIN:
        return content
    if content.startswith(b"\x1f\x8b"):
        content = Package.load(path).library
    found = fatbins(content)
    if not found:
        raise MpqError(f"{path} holds no code for NVIDIA's GPUs")
    return found[0]


_CUBIN = 190
"""The machine's number in the header of an ELF file."""
