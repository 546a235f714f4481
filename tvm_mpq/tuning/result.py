"""What a tuning run found: the shape of ``tune --json``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TunedKernel:
    """One kernel of one plan, called ``count`` times a run.

    Seconds are of one call with the default tile and with the tile to use, from the same interleaved measurement.
    ``trials`` are the tiles measured in all, in earlier runs too; ``tuned`` is whether a search was finished.
    """

    plan: str
    name: str
    count: int
    default_seconds: float
    seconds: float
    trials: int
    tuned: bool

    @property
    def ratio(self) -> float:
        """How many times as fast as by default."""
        return self.default_seconds / self.seconds


@dataclass(frozen=True)
class TuningResult:
    """Every kernel of every plan; ``seconds`` is what the run took."""

    kernels: tuple[TunedKernel, ...]
    threads: int
    seconds: float

    def totals(self, plan: str) -> tuple[float, float]:
        """Seconds of all calls of a plan's kernels in one run, by default and tuned."""
        mine = [kernel for kernel in self.kernels if kernel.plan == plan]
        return (
            sum(kernel.count * kernel.default_seconds for kernel in mine),
            sum(kernel.count * kernel.seconds for kernel in mine),
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        return dataclasses.asdict(self)
