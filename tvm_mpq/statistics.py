"""How sure a measured change is: the paired bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Indices drawn at a time, so that memory does not grow with samples times resamples.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Interval:
    """A mean and the confidence interval around it, in the unit of what was averaged."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0.0 or self.high < 0.0


def paired_bootstrap(
    deltas: npt.NDArray[np.float64], resamples: int = 10000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The percentile bootstrap interval (Efron 1979) of the mean of ``deltas`` float64 [n].

    ``deltas`` are differences of two measurements of the same sample, which is what makes it paired: what
    is hard or easy about a sample cancels. Deterministic for a seed. One sample says nothing about spread,
    so its interval is infinite. Raises ValueError for no or non-finite deltas and for a level outside (0, 1).
    """
    deltas = np.asarray(deltas, np.float64)
    if deltas.ndim != 1 or len(deltas) == 0 or not np.isfinite(deltas).all():
        raise ValueError("a bootstrap needs a vector of at least one finite delta")
    if not 0.0 < level < 1.0 or resamples < 1:
        raise ValueError(
            f"a bootstrap needs a level in (0, 1) and resamples >= 1, not {level} and {resamples}"
        )
    mean = float(deltas.mean())
    if len(deltas) == 1:
        return Interval(mean, float("-inf"), float("inf"))
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _CHUNK // len(deltas))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(0, len(deltas), size=(count, len(deltas)), dtype=np.int32)
        means[start : start + count] = deltas[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(mean, float(low), float(high))
