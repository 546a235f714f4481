"""Targets: what a package is compiled for. One TOML file each, and ``host``, which is detected.

A target names the TVM target, the row of the kernels' table of dot-product instructions, the precisions the
kernels support there, and the CPU features that a machine needs to run the package.
"""

from __future__ import annotations

import difflib
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mpq import toml_fields
from tvm_mpq.cpu import X86_64_V2, X86_64_V3, X86_64_V4, cpu_features
from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import (
    CUDA,
    INT4_INSTRUCTION,
    NVIDIA_GPU,
    Gpu,
    driver_device,
    gpu_features,
    host_gpu,
    parse_gpu,
)
from tvm_mpq.precision import Precision

if TYPE_CHECKING:
    import tvm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = resources.files("tvm_mpq") / "targets"

_ARCHITECTURES = {
    **dict.fromkeys(("amx", "avx512bf16", "avx512vnni", "avxvnni", "avx512", "avx2", "generic"), "x86_64"),
    **dict.fromkeys(("i8mm", "dotprod", "neon"), "aarch64"),
    "neon32": "arm",
    **dict.fromkeys(("portable", *CUDA), ""),
}
INSTRUCTIONS = tuple(_ARCHITECTURES)
_FEATURES = {"dotprod": ("asimddp", "asimdhp"), "i8mm": ("i8mm", "asimdhp")}
"""What rows of the table need together: kernels of half floats come with dot products."""

_ABI = ("mabi", "mfloat-abi")

HOST_CUDA = "host-cuda"
ANY_GROUP = "g*"
"""In a target's list of precisions: groups of any size."""
KERNEL_PRECISIONS = (
    "fp32", "w8a8",
    *(f"w{bits}a8" for bits in range(7, 1, -1)),
    *(f"w{bits}{ANY_GROUP}a8" for bits in range(7, 1, -1)),
    *(f"w{bits}a32" for bits in range(8, 1, -1)),
    *(f"w{bits}{ANY_GROUP}a32" for bits in range(7, 1, -1)),
    "fp16", "bf16",
)  # fmt: skip
"""What the kernels know on every instruction set."""
GPU_PRECISIONS = (
    *KERNEL_PRECISIONS,
    *(f"w{bits}a16" for bits in range(8, 1, -1)),
    *(f"w{bits}{ANY_GROUP}a16" for bits in range(7, 1, -1)),
)
"""What the kernels for GPUs know, which multiply half floats."""


@dataclass(frozen=True)
class Roofline:
    """What a core of a kind of machine can do at most, by estimates (measured on none): costs are modelled from it.

    ``float_multipliers`` and ``integer_multipliers`` start one vector of the full width each a cycle. Bandwidths are
    those of reading with one core, in GB/s; the second cache is a core's own, the last one and memory are shared.
    """

    clock_ghz: float
    float_multipliers: float
    integer_multipliers: float
    second_cache_kb: float
    second_cache_gbs: float
    last_cache_kb: float
    last_cache_gbs: float
    memory_gbs: float


@dataclass(frozen=True)
class Device:
    """How a kind of machine is reached: its key at an RPC tracker, and the name that QEMU has for its processor."""

    rpc_key: str
    emulator: str = ""


@dataclass(frozen=True)
class Target:
    """A kind of machine.

    ``instruction`` is one of :data:`INSTRUCTIONS`; ``features`` are CPU flags as /proc/cpuinfo spells them;
    ``precisions`` are names that :class:`tvm_mpq.precision.Precision` parses, or with ``g*`` for groups of any
    size; ``cores`` is the number of processors where it is known; ``roofline`` is None where costs can only be
    measured; ``abi`` is TVM's ``mabi`` or ``mfloat-abi``, where the triple leaves it open. With a ``gpu`` the kernels
    run there, and ``mcpu`` and what goes with it are of the processor that starts them.
    """

    name: str
    description: str
    instruction: str
    precisions: tuple[str, ...]
    features: tuple[str, ...]
    mcpu: str
    mtriple: str = "x86_64-linux-gnu"
    mattr: tuple[str, ...] = ()
    kind: str = "llvm"
    cores: int | None = None
    roofline: Roofline | None = None
    device: Device | None = None
    abi: tuple[tuple[str, str], ...] = ()
    gpu: Gpu | None = None

    @property
    def architecture(self) -> str:
        """``x86_64``, ``aarch64``, ``arm``, ``riscv64`` … as the triple has it."""
        return architecture(self.mtriple)

    def tvm_dict(self) -> dict[str, Any]:
        """The fields of the TVM target, as ``tvm.target.Target`` takes them."""
        fields: dict[str, Any] = {"kind": "llvm", "mtriple": self.mtriple, "mcpu": self.mcpu}
        if self.mattr:
            fields["mattr"] = list(self.mattr)
        fields |= dict(self.abi)
        if self.cores is not None:
            fields["num-cores"] = self.cores
        if self.gpu is not None:
            return {"kind": self.kind, "arch": self.gpu.architectures[0], "host": fields}
        return fields

    def tvm_target(self) -> tvm.target.Target:
        """The TVM target that code for this machine is built with."""
        import tvm  # takes a second: only who compiles pays it

        any_processor = tvm.target.Target({"kind": "llvm", "mtriple": self.mtriple})
        known = {str(name) for name in tvm.target.codegen.llvm_get_cpu_archlist(any_processor)}
        if known and self.mcpu not in known:
            near = difflib.get_close_matches(self.mcpu, sorted(known), 3, 0.4)
            hint = "; did you mean " + " or ".join(near) if near else ""
            raise MpqError(
                f"the target {self.name}: LLVM knows no mcpu {self.mcpu!r} for {self.mtriple}{hint}"
            )
        return tvm.target.Target(self.tvm_dict())

    def require(self, precisions: Iterable[Precision]) -> None:
        """Raise MpqError that names one of ``precisions`` without kernels here, if there is one."""
        for precision in dict.fromkeys(precisions):
            if not self.supports(precision):
                known = ", ".join(self.precisions)
                raise MpqError(f"the target {self.name} has no kernels for {precision}: use {known}")

    def supports(self, precision: Precision) -> bool:
        """Whether the kernels for this target know ``precision``."""
        name = str(precision)
        any_size = name.replace(f"g{precision.group}", ANY_GROUP) if precision.group else name
        return name in self.precisions or any_size in self.precisions


def architecture(triple: str) -> str:
    """The architecture that a triple begins with: every 32-bit ARM is ``arm``."""
    first = triple.partition("-")[0]
    return "arm" if first.startswith("arm") and first != "arm64" else first.replace("arm64", "aarch64")


def machine_features() -> frozenset[str]:
    """What this machine's processor can do, and whether it has a GPU."""
    return cpu_features() | gpu_features()


def missing_features(target: Target, features: frozenset[str] | None = None) -> list[str]:
    """The features ``target`` needs that a machine with ``features`` (this one) lacks, in the target's order."""
    here = machine_features() if features is None else features
    return [feature for feature in target.features if feature not in here]


def host_target(flags: frozenset[str] | None = None) -> Target:
    """The target of the machine with the CPU ``flags`` (this one by default).

    The TVM target is a *level* (x86-64-v2 … v4) with the dot-product extension as an explicit attribute, and
    not the exact processor: the package then needs only what the level and the attribute name, and runs on
    every machine that has those. Raises MpqError for a machine that is not x86-64 with SSE4.2.
    """
    flags = cpu_features() if flags is None else flags
    rows = (
        (
            "amx",
            "x86-64-v4",
            (*X86_64_V4, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"),
            ("+avx512vnni", "+avx512bf16", "+amx-tile", "+amx-int8"),
        ),
        (
            "avx512bf16",
            "x86-64-v4",
            (*X86_64_V4, "avx512_vnni", "avx512_bf16"),
            ("+avx512vnni", "+avx512bf16"),
        ),
        ("avx512vnni", "x86-64-v4", (*X86_64_V4, "avx512_vnni"), ("+avx512vnni",)),
        ("avxvnni", "x86-64-v3", (*X86_64_V3, "avx_vnni"), ("+avxvnni",)),
        ("avx512", "x86-64-v4", X86_64_V4, ()),
        ("avx2", "x86-64-v3", X86_64_V3, ()),
        ("generic", "x86-64-v2", X86_64_V2, ()),
    )
    for instruction, mcpu, needed, mattr in rows:
        if flags.issuperset(needed):
            return Target(
                name="host",
                description=f"This machine: {mcpu}, {instruction}",
                instruction=instruction,
                precisions=KERNEL_PRECISIONS,
                features=tuple(needed),
                mcpu=mcpu,
                mattr=mattr,
            )
    raise MpqError(
        "the target 'host' needs an x86-64 Linux machine with SSE4.2, which this is not; "
        "name the machine to compile for with --target"
    )


def host_cuda_target() -> Target:
    """The target of this machine's GPU; raises MpqError where the driver knows none."""
    gpu, name = host_gpu()
    machine = platform.machine()
    return Target(
        name=HOST_CUDA,
        description=f"This machine's GPU: {name}",
        instruction=INT4_INSTRUCTION if gpu.int4 else "cuda",
        precisions=GPU_PRECISIONS,
        features=(NVIDIA_GPU,),
        mcpu="x86-64" if machine == "x86_64" else "generic",
        mtriple=f"{machine}-linux-gnu",
        kind="cuda",
        gpu=gpu,
    )


def target_names() -> list[str]:
    """The names that :func:`load_target` knows: ``host`` first, and ``host-cuda`` where there is a GPU."""
    files = sorted(entry.name for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))
    gpu = [HOST_CUDA] if driver_device() is not None else []
    return ["host", *gpu, *(name.removesuffix(".toml") for name in files)]


def load_target(name: str) -> Target:
    """The target called ``name``, or described by the file ``name`` when it ends in ``.toml``.

    Raises MpqError with the near matches for an unknown name, and with the field at fault for a wrong file.
    """
    if name == "host":
        return host_target()
    if name == HOST_CUDA:
        return host_cuda_target()
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MpqError(f"cannot read the target file {name}: {error}") from None
        return parse_target(text, name)
    names = target_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 3, 0.5)
        hint = "did you mean " + " or ".join(near) if near else "known are " + ", ".join(names)
        raise MpqError(f"unknown target {name!r}; {hint}")
    text = (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    return parse_target(text, f"{name}.toml")


def parse_target(text: str, source: str) -> Target:
    """Read a target's TOML; raises MpqError that names ``source`` and the field at fault."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MpqError(f"{source} is not valid TOML: {error}") from None
    toml_fields.only(
        raw,
        {f.name for f in fields(Target)} - {"mcpu", "mtriple", "mattr", "kind", "abi"} | {"tvm"},
        source,
    )
    tvm_raw = raw.get("tvm")
    if not isinstance(tvm_raw, dict):
        raise MpqError(f"{source}: the table [tvm] is missing")
    toml_fields.only(tvm_raw, {"kind", "mcpu", "mtriple", "mattr", *_ABI}, f"{source}: [tvm]")
    instruction = toml_fields.text(raw, "instruction", source)
    if instruction not in INSTRUCTIONS:
        raise MpqError(f"{source}: unknown instruction {instruction!r}; known are {', '.join(INSTRUCTIONS)}")
    triple = toml_fields.text(tvm_raw, "mtriple", f"{source}: [tvm]")
    if _ARCHITECTURES[instruction] not in ("", architecture(triple)):
        wanted = _ARCHITECTURES[instruction]
        raise MpqError(
            f"{source}: instruction {instruction!r} is of {wanted}, but [tvm] mtriple is {triple!r}"
        )
    features = toml_fields.texts(raw, "features", source)
    lacking = [feature for feature in _FEATURES.get(instruction, ()) if feature not in features]
    if lacking:
        raise MpqError(f"{source}: instruction {instruction!r} needs the features {', '.join(lacking)}")
    precisions = toml_fields.texts(raw, "precisions", source)
    for precision in precisions:
        try:
            Precision.parse(precision.replace(ANY_GROUP, "g1"))
        except MpqError as error:
            raise MpqError(f"{source}: {error}") from None
    kind = toml_fields.text(tvm_raw, "kind", f"{source}: [tvm]")
    wanted = "cuda" if instruction in CUDA else "llvm"
    if kind != wanted:
        raise MpqError(f"{source}: [tvm] kind {kind!r} is not supported with {instruction!r}; use {wanted!r}")
    if ("gpu" in raw) != (kind == "cuda"):
        raise MpqError(f"{source}: a target of kind 'cuda', and no other, has a table [gpu]")
    gpu = parse_gpu(raw["gpu"], f"{source}: [gpu]") if "gpu" in raw else None
    if gpu is not None and instruction == INT4_INSTRUCTION:
        gpu.require_int4(f"{source}: [gpu]")
    cores = raw.get("cores")
    if cores is not None and (type(cores) is not int or cores < 1):
        raise MpqError(f"{source}: 'cores' must be a whole number of at least 1, not {cores!r}")
    return Target(
        name=toml_fields.text(raw, "name", source),
        description=toml_fields.text(raw, "description", source),
        instruction=instruction,
        precisions=precisions,
        features=features,
        mcpu=toml_fields.text(tvm_raw, "mcpu", f"{source}: [tvm]"),
        mtriple=triple,
        mattr=toml_fields.texts(tvm_raw, "mattr", f"{source}: [tvm]"),
        kind=kind,
        cores=cores,
        roofline=_roofline(raw["roofline"], f"{source}: [roofline]") if "roofline" in raw else None,
        device=_device(raw["device"], f"{source}: [device]") if "device" in raw else None,
        abi=tuple(
            (name, toml_fields.text(tvm_raw, name, f"{source}: [tvm]")) for name in _ABI if name in tvm_raw
        ),
        gpu=gpu,
    )


def _device(raw: Any, source: str) -> Device:
    raw = toml_fields.table(raw, source)
    toml_fields.only(raw, {"rpc_key", "emulator"}, source)
    emulator = toml_fields.text(raw, "emulator", source) if "emulator" in raw else ""
    return Device(toml_fields.text(raw, "rpc_key", source), emulator)


def _roofline(raw: Any, source: str) -> Roofline:
    raw = toml_fields.table(raw, source)
    names = [field.name for field in fields(Roofline)]
    toml_fields.only(raw, set(names), source)
    return Roofline(**toml_fields.numbers(raw, names, source))
