"""What a user asks of a search: the metric to minimise and the limits on the others."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tvm_mpq.errors import MpqError

LOSS, LATENCY, STORAGE = "loss", "latency", "storage"
METRICS = (LOSS, LATENCY, STORAGE)

_UNITS = {
    LATENCY: {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    STORAGE: {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
}
_LIMIT = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]+)")


@dataclass(frozen=True)
class Limit:
    """A limit in seconds or bytes, or with ``relative`` a multiple of what the network takes in fp32."""

    value: float
    relative: bool

    @classmethod
    def parse(cls, option: str, metric: str, text: str) -> Limit:
        """Read ``0.2x``, ``8ms`` or ``1.5MB``; raises MpqError that names ``option`` for anything else."""
        match = _LIMIT.fullmatch(text.strip())
        units = _UNITS[metric]
        value, unit = (float(match[1]), match[2]) if match else (math.nan, "")
        number = value * units.get(unit, 1.0)
        if unit in (*units, "x") and 0 < number < math.inf:
            return cls(number, unit == "x")
        example = {LATENCY: "8ms", STORAGE: "1.5MB"}[metric]
        raise MpqError(
            f"{option} needs a multiple of fp32's such as 0.2x, or a number in "
            f"{', '.join(units)} such as {example}, not {text!r}"
        )

    def of(self, fp32: float) -> float:
        """The limit in seconds or bytes, ``fp32`` being what the network takes in fp32."""
        return self.value * fp32 if self.relative else self.value


@dataclass(frozen=True)
class Goal:
    """Minimise one of :data:`METRICS` under limits on any of them; None does not limit.

    ``max_loss_increase`` is in the loss's unit, against fp32; below zero it asks for a lower loss. Raises MpqError for
    an unknown metric, and for a latency or storage to be minimised without a limit on the loss: the answer would be
    the fewest bits there are.
    """

    minimize: str = LOSS
    max_loss_increase: float | None = None
    max_latency: Limit | None = None
    max_storage: Limit | None = None

    def __post_init__(self) -> None:
        if self.minimize not in METRICS:
            raise MpqError(f"cannot minimize {self.minimize!r}: use {', '.join(METRICS)}")
        if self.minimize != LOSS and self.max_loss_increase is None:
            raise MpqError(
                f"minimizing {self.minimize} needs a limit on the loss, such as --max-loss-increase 0"
            )
        if self.max_loss_increase is not None and not math.isfinite(self.max_loss_increase):
            raise MpqError("--max-loss-increase needs a number")

    def limits(self, fp32: dict[str, float]) -> dict[str, float]:
        """The limits on latency (seconds) and storage (bytes) that there are, given what ``fp32`` takes of both."""
        given = {LATENCY: self.max_latency, STORAGE: self.max_storage}
        return {metric: limit.of(fp32[metric]) for metric, limit in given.items() if limit is not None}
