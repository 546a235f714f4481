"""What the harness measures: the shape of ``benchmark --json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.runtime.metadata import KernelCall, OperatorRecord

if TYPE_CHECKING:
    from tvm_mpq.runtime.profile import Profile


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run at a batch of the package's size."""

    median: float
    p90: float
    min: float
    threads: int

    @classmethod
    def of(cls, seconds: npt.NDArray[np.float64], threads: int) -> Latency:
        """Summarise float64 [runs] seconds."""
        ms = seconds * 1e3
        return cls(float(np.median(ms)), float(np.quantile(ms, 0.9)), float(ms.min()), threads)


@dataclass(frozen=True)
class StorageBytes:
    """Bytes of the package's file, of its weights in it before compression and at run time, and of resident memory."""

    file: int
    weights: int
    weights_resident: int
    resident: int


@dataclass(frozen=True)
class LossResult:
    """The loss over an evaluation set, and its change against fp32.

    ``accuracy`` is None where labels are not classes. ``delta`` (this - fp32) and its paired-bootstrap 95 %
    interval ``ci95`` are None without a baseline; the interval is also None for a single sample.
    """

    name: str
    mean: float
    accuracy: float | None
    samples: int
    delta: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class BaselineResult:
    """The fp32 package, measured in the same run."""

    latency_ms: Latency
    storage_bytes: StorageBytes
    loss: LossResult


@dataclass(frozen=True)
class Environment:
    """What the figures depend on. ``hashes`` are SHA-256: packages, data, and those the package records."""

    cpu: str
    features: tuple[str, ...]
    versions: dict[str, str]
    seed: int
    hashes: dict[str, str | None]


@dataclass(frozen=True)
class Tiles:
    """How many kernel calls have a tuned tile, and whose have the default one: names of operators."""

    tuned: int
    untuned: tuple[str, ...]

    @classmethod
    def of(cls, calls: Sequence[KernelCall]) -> Tiles:
        """Count a package's calls; those of kernels that have no tile do not count."""
        return cls(
            sum(call.tile == "tuned" for call in calls),
            tuple(dict.fromkeys(call.operator for call in calls if call.tile == "default")),
        )


@dataclass(frozen=True)
class Result:
    """A benchmark. ``baseline`` is None with the reason in ``baseline_reason`` where there was none.

    ``profile`` is None where none was asked for.
    """

    latency_ms: Latency
    storage_bytes: StorageBytes
    loss: LossResult
    baseline: BaselineResult | None
    baseline_reason: str | None
    operators: tuple[OperatorRecord, ...]
    tiles: Tiles
    environment: Environment
    profile: Profile | None = None

    @property
    def slower(self) -> bool:
        """Whether the package's median latency is above its baseline's."""
        return self.baseline is not None and self.latency_ms.median > self.baseline.latency_ms.median

    def to_dict(self) -> dict[str, Any]:
        """The benchmark as JSON-ready values."""
        profile = None if self.profile is None else self.profile.to_dict()
        return {**dataclasses.asdict(dataclasses.replace(self, profile=None)), "profile": profile}
