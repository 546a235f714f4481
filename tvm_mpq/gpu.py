"""NVIDIA's GPUs: what a target says of one, and what the driver says of the one in this machine."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tvm_mpq import toml_fields
from tvm_mpq.errors import MpqError

NVIDIA_GPU = "nvidia-gpu"
"""What a machine needs beside its processor's features to run a package for a GPU: a GPU and its driver."""
STEPS = ("imma", "hmma", "dp4a", "imad", "ffma")
"""Multiply-accumulates: of tensor cores in int8 and float16, of four bytes, of one int32 and of one float32."""
INT4_STEP = "imma4"
"""Of tensor cores in int4, which not all GPUs have."""
INT4_INSTRUCTION = "cuda-int4"
CUDA = ("cuda", INT4_INSTRUCTION)
"""The instructions of NVIDIA's GPUs in the kernels' table, without and with tensor cores that multiply four bits."""
_INT4_CAPABILITIES = range(75, 90)
"""Compute capabilities that multiply them: 9.0 has no such unit."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    ``architectures`` are what machine code is made for (``sm_80``, …), the oldest first; all of them in one package.
    The numbers are the vendor's, or follow from them; no code was timed. ``macs_per_cycle`` is of one multiprocessor,
    in the order of :data:`STEPS`, and then of :data:`INT4_STEP` where there is that; bandwidths are of reading, in
    GB/s.
    """

    architectures: tuple[str, ...]
    multiprocessors: float
    clock_ghz: float
    shared_kb: float
    l2_kb: float
    l2_gbs: float
    memory_gbs: float
    macs_per_cycle: tuple[float, ...]

    def macs_per_second(self, step: str) -> float:
        """The most that all multiprocessors together can do of ``step``."""
        return (
            self.multiprocessors * self.clock_ghz * 1e9 * self.macs_per_cycle[(*STEPS, INT4_STEP).index(step)]
        )

    @property
    def int4(self) -> bool:
        """Whether it is known to multiply four bits."""
        return len(self.macs_per_cycle) > len(STEPS)

    def require_int4(self, source: str) -> None:
        """Raise MpqError that names ``source`` unless all code is for architectures with int4 tensor cores."""
        others = [name for name in self.architectures if _capability(name) not in _INT4_CAPABILITIES]
        if others:
            raise MpqError(
                f"{source}: {', '.join(others)} has no int4 tensor cores for {INT4_INSTRUCTION!r}: use 'cuda'"
            )
        if not self.int4:
            raise MpqError(f"{source}: {INT4_INSTRUCTION!r} needs {INT4_STEP!r} in 'macs_per_cycle'")


_NUMBERS = [field.name for field in fields(Gpu) if field.name not in ("architectures", "macs_per_cycle")]


def parse_gpu(raw: Any, source: str) -> Gpu:
    """Read a target's table [gpu]; raises MpqError that names ``source`` and the field at fault."""
    raw = toml_fields.table(raw, source)
    toml_fields.only(raw, {*_NUMBERS, "architectures", "macs_per_cycle"}, source)
    architectures = toml_fields.texts(raw, "architectures", source)
    for name in architectures:
        if not re.fullmatch(r"sm_\d{2,3}", name):
            raise MpqError(f"{source}: 'architectures' are spelled like sm_80, not {name!r}")
    if not architectures:
        raise MpqError(f"{source}: 'architectures' must name at least one")
    table = toml_fields.table(raw.get("macs_per_cycle"), f"{source}: 'macs_per_cycle'")
    toml_fields.only(table, {*STEPS, INT4_STEP}, f"{source}: 'macs_per_cycle'")
    steps = [*STEPS, *([INT4_STEP] if INT4_STEP in table else [])]
    rates = toml_fields.numbers(table, steps, f"{source}: 'macs_per_cycle'")
    return Gpu(
        architectures=architectures,
        macs_per_cycle=tuple(rates[step] for step in steps),
        **toml_fields.numbers(raw, _NUMBERS, source),
    )


def _capability(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))


@dataclass(frozen=True)
class FoundGpu:
    """A GPU that a machine has: its name and compute capability, 8.7 as (8, 7)."""

    name: str
    capability: tuple[int, int]

    def code(self, architectures: Sequence[str]) -> str:
        """Of code for ``architectures`` what this GPU runs, or translates; raises MpqError where that is none."""
        numbers = sorted((_capability(name), name) for name in architectures)
        own = [name for number, name in numbers if self._runs(number)]
        if own:
            return own[-1]
        major, minor = self.capability
        if numbers[-1][0] > 10 * major + minor:
            raise MpqError(
                f"the GPU {self.name} has compute capability {major}.{minor}, and runs no code for "
                f"{', '.join(architectures)}"
            )
        return numbers[-1][1]

    def _runs(self, number: int) -> bool:
        major, minor = divmod(number, 10)
        return major == self.capability[0] and minor <= self.capability[1]


@dataclass(frozen=True)
class DriverDevice(FoundGpu):
    """The first GPU as the driver describes it."""

    multiprocessors: int
    clock_ghz: float
    shared_kb: float
    l2_kb: float
    memory_gbs: float


_ATTRIBUTES = {
    "major": 75, "minor": 76, "multiprocessors": 16, "clock_khz": 13, "memory_khz": 36, "bus_bits": 37,
    "l2_bytes": 38, "shared_bytes": 81,
}  # fmt: skip
"""Numbers of CUdevice_attribute in CUDA's cuda.h."""


@functools.cache
def driver_device() -> DriverDevice | None:
    """What NVIDIA's driver says of the first GPU; None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    name = ctypes.create_string_buffer(100)
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 100, device):
        return None
    found = {}
    for key, number in _ATTRIBUTES.items():
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), number, device):
            return None
        found[key] = value.value
    return DriverDevice(
        name.value.decode(errors="replace"),
        (found["major"], found["minor"]),
        found["multiprocessors"],
        found["clock_khz"] / 1e6,
        found["shared_bytes"] / 1024,
        found["l2_bytes"] / 1024,
        # Memory moves data on both edges of its clock.
        2 * found["memory_khz"] * 1e3 * found["bus_bits"] / 8 / 1e9,
    )


def gpu_features() -> frozenset[str]:
    """:data:`NVIDIA_GPU` if this machine has one, else nothing."""
    return frozenset([NVIDIA_GPU] if driver_device() is not None else [])


_RATES = {
    7: (1024.0, 512.0, 256.0, 64.0, 64.0, 2048.0),
    8: (2048.0, 1024.0, 256.0, 64.0, 128.0, 4096.0),
    9: (4096.0, 2048.0, 256.0, 64.0, 128.0),
}
"""``macs_per_cycle`` by the major compute capability; later ones are taken to do at least as much as the last."""
OLDEST = (7, 5)
"""The first compute capability whose tensor cores multiply bytes."""


def host_gpu() -> tuple[Gpu, str]:
    """The GPU of this machine and its name; raises MpqError where there is none, or one without int8 tensor cores."""
    found = driver_device()
    if found is None:
        raise MpqError(
            "the target 'host-cuda' needs an NVIDIA GPU and its driver (libcuda.so.1), which this machine lacks; "
            "name the GPU to compile for with --target, such as jetson-orin or cuda-sm80"
        )
    if found.capability < OLDEST:
        raise MpqError(
            f"the GPU {found.name} has compute capability {found.capability[0]}.{found.capability[1]}; "
            f"kernels need {OLDEST[0]}.{OLDEST[1]}"
        )
    return (
        Gpu(
            architectures=(f"sm_{found.capability[0]}{found.capability[1]}",),
            multiprocessors=found.multiprocessors,
            clock_ghz=found.clock_ghz,
            shared_kb=found.shared_kb,
            l2_kb=found.l2_kb,
            l2_gbs=3 * found.memory_gbs,
            memory_gbs=found.memory_gbs,
            macs_per_cycle=_RATES[min(found.capability[0], max(_RATES))],
        ),
        found.name,
    )
