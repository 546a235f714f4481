"""The deployable file: a compiled network, its plan, and what it says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256, write_beside
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.runtime.archive import pack, unpack
from tvm_mpq.runtime.metadata import (
    SCHEMA_VERSION,
    BaselineInfo,
    CalibrationInfo,
    Hashes,
    KernelCall,
    Metadata,
    OperatorRecord,
    Storage,
    TargetInfo,
)
from tvm_mpq.target import Target
from tvm_mpq.tensor_spec import TensorSpec
from tvm_mpq.versions import versions

_METADATA, _PLAN, _LIBRARY, _WEIGHTS = "metadata.json", "plan.json", "model.so", "weights.bin"
_LIMITS = {_METADATA: 64 << 20, _PLAN: 64 << 20, _LIBRARY: 4 << 30, _WEIGHTS: 4 << 30}


@dataclass(frozen=True)
class Package:
    """A compiled network.

    ``library`` is the bytes of a shared library with bytecode, kernels and the weights of 8 bits and more, ``weights``
    the stream of the weights of fewer bits, which the library expands (:mod:`tvm_mpq.runtime.weights`).
    """

    metadata: Metadata
    plan: PrecisionPlan
    library: bytes
    weights: bytes = b""

    @classmethod
    def create(
        cls,
        *,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        target: Target,
        plan: PrecisionPlan,
        library: bytes,
        weights: bytes = b"",
        model_sha256: str,
        operators: Sequence[OperatorRecord],
        storage: Storage,
        calls: Sequence[KernelCall] = (),
        calibration: CalibrationInfo | None = None,
        calibration_sha256: str | None = None,
        baseline: BaselineInfo | None = None,
    ) -> Package:
        """Put a package together; versions and the hashes of library, weights and plan are filled in."""
        metadata = Metadata(
            schema_version=SCHEMA_VERSION,
            name=name,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            target=TargetInfo.of(target),
            versions=versions(),
            hashes=Hashes(
                model=model_sha256,
                calibration=calibration_sha256,
                library=sha256(library),
                weights=sha256(weights),
                plan=sha256(plan.to_json().encode()),
            ),
            storage=storage,
            operators=tuple(operators),
            calls=tuple(calls),
            calibration=calibration,
            baseline=baseline,
        )
        return cls(metadata, plan, library, weights)

    def with_baseline(self, file: str, content: bytes) -> Package:
        """This package with the fp32 package ``content``, written beside it as ``file``, as its baseline."""
        return replace(self, metadata=replace(self.metadata, baseline=BaselineInfo(file, sha256(content))))

    @cached_property
    def _content(self) -> bytes:
        return pack(
            {
                _METADATA: self.metadata.to_json().encode(),
                _PLAN: self.plan.to_json().encode(),
                _LIBRARY: self.library,
                _WEIGHTS: self.weights,
            }
        )

    def to_bytes(self) -> bytes:
        """The bytes of the package's file: the same for the same package."""
        return self._content

    def save(self, path: str | Path) -> None:
        """Write the package to ``path``, beside it first and then renamed. Raises MpqError if it cannot."""
        write_beside(Path(path), self.to_bytes())

    @classmethod
    def from_bytes(cls, content: bytes, source: str = "package") -> Package:
        """Read what :meth:`to_bytes` gave, verified; raises MpqError that names ``source``."""
        members = unpack(content, _LIMITS, source)
        try:
            metadata_text = members[_METADATA].decode()
            plan_text = members[_PLAN].decode()
        except UnicodeDecodeError:
            raise MpqError(f"{source} was altered: its metadata or plan is not text") from None
        metadata = Metadata.from_json(metadata_text, source)
        plan = PrecisionPlan.from_json(plan_text, f"{source}: {_PLAN}")
        hashes = metadata.hashes
        for name, expected in ((_LIBRARY, hashes.library), (_WEIGHTS, hashes.weights), (_PLAN, hashes.plan)):
            if sha256(members[name]) != expected:
                raise MpqError(f"{source} was altered: {name} does not match the hash in {_METADATA}")
        package = cls(metadata, plan, members[_LIBRARY], members[_WEIGHTS])
        # The file as it is and not packed again: another zlib may give other bytes.
        vars(package)["_content"] = content
        return package

    @classmethod
    def load(cls, path: str | Path) -> Package:
        """Read and verify a package file; raises MpqError for one that is missing, damaged or not a package.

        What the machine must be able to do is checked when a session is opened, so that a package for
        another machine can still be looked at.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise MpqError(f"cannot read the package {path}: {error.strerror}") from None
        return cls.from_bytes(content, str(path))


def baseline_path(path: str | Path) -> Path:
    """Where the fp32 package beside ``path`` is written: ``model.tar`` → ``model.fp32.tar``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.fp32{path.suffix}")
