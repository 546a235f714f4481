"""A plan's change of the loss from a few hundred samples, with what of it is luck taken out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tvm_mpq.runtime.evaluate import SampleLosses


@dataclass(frozen=True)
class Estimate:
    """A change of the mean loss and its standard error."""

    change: float
    error: float


def trust(mean: float, error: float, tried: int) -> float:
    """How much of an estimate ``mean`` ± ``error`` counts that is one of ``tried``, from 0 to 1.

    Of so many estimates of nothing the luckiest is about error · √(2 ln tried) away from nothing (Donoho & Johnstone
    1994): what stands out of that counts (the positive part of James & Stein 1961).
    """
    if not mean or not math.isfinite(error):
        return 0.0
    return max(0.0, 1.0 - 2.0 * math.log(max(tried, 2)) * (error / mean) ** 2)


def estimate(found: SampleLosses, reference: SampleLosses, tried: int) -> Estimate:
    """The change from ``reference``, the network in fp32, to ``found``, which is one of ``tried`` plans.

    The measured change is split into the divergence from fp32, what the change would be on average if fp32 told the
    truth, and the rest: how fp32's own errors go along with the change of the outputs, which is signed. The first has a
    small error. The second is mostly luck, which a search over plans finds plenty of: it counts by :func:`trust`.
    Without a divergence the measured change counts as it is.
    """
    delta = found.losses - reference.losses
    if found.divergence is None:
        return Estimate(float(delta.mean()), _standard_error(delta))
    signed = delta - found.divergence
    mean, error = float(signed.mean()), _standard_error(signed)
    part = trust(mean, error, tried)
    total = float(found.divergence.mean()) + part * mean
    return Estimate(total, float(np.hypot(_standard_error(found.divergence), part * error)))


def _standard_error(values: np.typing.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")
