"""What a package says about itself: ``metadata.json``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.decode import decode
from tvm_mpq.target import Target
from tvm_mpq.tensor_spec import TensorSpec

SCHEMA_VERSION = 4
NEVER_EXECUTED = "compiled and emulated, never executed on a GPU"


@dataclass(frozen=True)
class TargetInfo:
    """What the package was compiled for; ``features`` are the CPU flags it needs (/proc/cpuinfo spelling).

    ``note`` says what a user must know of code for this target: for GPUs what machine code there is, and that none of
    it ran on one.
    """

    name: str
    instruction: str
    features: tuple[str, ...]
    tvm: dict[str, Any]
    note: str = ""

    @classmethod
    def of(cls, target: Target) -> TargetInfo:
        """The part of ``target`` that a package records."""
        note = ""
        if target.gpu is not None:
            note = f"code for {', '.join(target.gpu.architectures)}; {NEVER_EXECUTED}"
        return cls(target.name, target.instruction, target.features, target.tvm_dict(), note)


@dataclass(frozen=True)
class Storage:
    """Bytes: ``weights`` as the file holds them before compression, ``weights_fp32`` the same in fp32.

    ``weights_resident`` are the weights as kernels read them: fewer than 8 bits are packed in the file, and at run
    time only where a kernel unpacks them itself. ``resident`` adds the planned activation memory; the harness measures
    the real figure.
    """

    weights: int
    weights_fp32: int
    weights_resident: int
    resident: int


@dataclass(frozen=True)
class OperatorRecord:
    """One operator: the precision asked for, chosen and executed, and why they differ ("" if not)."""

    name: str
    kind: str
    asked: str
    chosen: str
    executed: str
    reason: str


@dataclass(frozen=True)
class KernelCall:
    """One kernel that a run calls; a package lists them in the order of their calls.

    ``role`` is ``operator``, or for a conversion at a border ``quantize``, ``dequantize`` or ``layout``. ``operator``
    is whose it is (of a conversion: the operator or network input that made the tensor), ``reader`` the operator that
    asked for the conversion ("" for the network's output). ``step`` names the multiply-accumulate step it is made of
    ("" without one) and ``steps`` how many of its multiply-accumulates the kernel needs at least, which is what the
    roofline counts; ``macs`` are the operator's own. Bytes are of constants, inputs and output, each counted once.
    ``tile``: ``tuned`` or ``default``, "" for a kernel that has none.
    """

    kernel: str
    role: str
    operator: str
    reader: str
    step: str
    macs: int
    steps: float
    constant_bytes: int
    input_bytes: int
    output_bytes: int
    tile: str = ""


@dataclass(frozen=True)
class CalibrationInfo:
    """How the ranges of the 8-bit tensors were found."""

    observer: str
    samples: int
    seed: int


@dataclass(frozen=True)
class Hashes:
    """SHA-256 in hexadecimal of the ONNX file, calibration samples (None without), library, weights and plan."""

    model: str
    calibration: str | None
    library: str
    weights: str
    plan: str


@dataclass(frozen=True)
class BaselineInfo:
    """The fp32 package written beside: file name (no folder) and SHA-256 of the file."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Metadata:
    """Everything a package says about itself. Holds no time of day: equal inputs give equal bytes."""

    schema_version: int
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: TargetInfo
    versions: dict[str, str]
    hashes: Hashes
    storage: Storage
    operators: tuple[OperatorRecord, ...]
    calls: tuple[KernelCall, ...]
    calibration: CalibrationInfo | None
    baseline: BaselineInfo | None

    def to_dict(self) -> dict[str, Any]:
        """The metadata as JSON-ready values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The text of ``metadata.json``."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Metadata:
        """Read what :meth:`to_json` wrote; raises MpqError that names ``source`` and what is wrong."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError):
            raise MpqError(f"{source}: metadata.json is not valid JSON") from None
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            newer = type(version) is int and version > SCHEMA_VERSION
            hint = "; install a newer tvm_mpq" if newer else ""
            raise MpqError(
                f"{source} has package schema version {version!r}, this tvm_mpq reads {SCHEMA_VERSION}{hint}"
            )
        metadata = decode(cls, raw, f"{source}: metadata.json")
        if not metadata.inputs or not metadata.outputs:
            raise MpqError(f"{source}: metadata.json names no inputs or no outputs")
        return metadata
