"""From products of single samples to the entries of the table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.sensitivity.table import Sensitivity

Samples = npt.NDArray[np.float64]
"""[samples, 2]: Σ δ·g and Σ δ² of each sample."""


def entry(total: Samples, by_input: Samples | None) -> Sensitivity:
    """The sensitivity of a candidate from its products, and from those of rounding its input alone (None: not rounded).

    The weights' part is what quantizing the weights adds on the rounded input, so that the parts add up to the whole.
    """
    first = total[:, 0]
    part = 0.0 if by_input is None else float(by_input[:, 0].mean())
    mean = float(first.mean())
    return Sensitivity(
        mean=mean,
        stderr=standard_error(first),
        input_part=part,
        weight_part=mean - part,
        second_order=0.5 * float((first**2).mean()),
        noise=float(total[:, 1].mean()),
        samples=len(total),
    )


def curvature_entry(total: Samples, by_input: Samples | None) -> Sensitivity:
    """The same for a loss that is stationary in fp32, from products with gradients of which it is the curvature.

    The first-order change is zero: the expected change is ½ E⟨g, δ⟩², and the parts are parts of that.
    """
    half = 0.5 * total[:, 0] ** 2
    part = 0.0 if by_input is None else 0.5 * float((by_input[:, 0] ** 2).mean())
    mean = float(half.mean())
    return Sensitivity(
        mean, standard_error(half), part, mean - part, mean, float(total[:, 1].mean()), len(total)
    )


def drawn_labels(output: npt.NDArray[Any], probabilities: bool, seed: int) -> npt.NDArray[np.int64]:
    """A class for each sample and position [n, d…], drawn from what ``output`` [n, classes, d…] says is probable."""
    x = output.astype(np.float64)
    if not probabilities:
        x = np.exp(x - x.max(axis=1, keepdims=True))
    below = np.cumsum(x / x.sum(axis=1, keepdims=True), axis=1)
    drawn = np.random.default_rng(seed).uniform(size=(len(x), 1, *x.shape[2:]))
    return np.minimum((below < drawn).sum(axis=1), x.shape[1] - 1).astype(np.int64)


def standard_error(values: npt.NDArray[np.float64]) -> float:
    """Of the mean of independent ``values``; infinite for a single one."""
    if len(values) < 2:
        return math.inf
    return float(values.std(ddof=1) / math.sqrt(len(values)))
