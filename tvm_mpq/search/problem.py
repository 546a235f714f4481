"""The arrays of a choice problem: what each choice of each operator costs, alone and beside its neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Choices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Boundary:
    """An edge of the network: ``costs[metric][p, q]`` is added where ``source`` has choice p and ``target`` q.

    Each array is float64 [P, P], in the metric's unit; a metric that is absent costs nothing on this edge.
    """

    source: int
    target: int
    costs: Mapping[str, Floats]


@dataclass(frozen=True)
class Problem:
    """N operators with P candidate choices each.

    ``costs[metric]`` is float64 [N, P]: loss change, seconds, bytes, noise, whatever adds up over operators.
    ``allowed`` is bool [N, P]; costs of choices that are not allowed are never looked at. Raises ValueError for arrays
    that do not fit together, non-finite costs, and an operator with no choice.
    """

    costs: Mapping[str, Floats]
    allowed: npt.NDArray[np.bool_]
    boundaries: Sequence[Boundary] = field(default=())

    def __post_init__(self) -> None:
        shape = self.allowed.shape
        if len(shape) != 2 or self.allowed.dtype != np.bool_:
            raise ValueError("allowed is a bool array [operators, choices]")
        stuck = np.flatnonzero(~self.allowed.any(axis=1))
        if len(stuck):
            raise ValueError(f"operator {int(stuck[0])} has no allowed choice")
        for metric, values in self.costs.items():
            if values.shape != shape:
                raise ValueError(f"{metric} has shape {values.shape}, allowed has {shape}")
            if not np.isfinite(values[self.allowed]).all():
                raise ValueError(f"{metric} of an allowed choice is not finite")
        for edge in self.boundaries:
            if not (0 <= edge.source < shape[0] and 0 <= edge.target < shape[0]):
                raise ValueError(f"a boundary joins operators {edge.source} and {edge.target} of {shape[0]}")
            if edge.source == edge.target:
                raise ValueError(f"operator {edge.source} has a boundary with itself")
            for metric, values in edge.costs.items():
                if metric not in self.costs:
                    raise ValueError(f"a boundary costs {metric!r}, which operators do not")
                if values.shape != (shape[1], shape[1]) or not np.isfinite(values).all():
                    raise ValueError(f"a boundary's {metric} is not a finite array [{shape[1]}, {shape[1]}]")

    def totals(self, choices: Choices) -> dict[str, float]:
        """The sum of each metric, correctly rounded, for ``choices`` int64 [N]."""
        rows = np.arange(len(choices))
        result = {}
        for metric, values in self.costs.items():
            edges = (
                float(edge.costs[metric][choices[edge.source], choices[edge.target]])
                for edge in self.boundaries
                if metric in edge.costs
            )
            result[metric] = math.fsum([*values[rows, choices].tolist(), *edges])
        return result

    def span(self, metric: str) -> float:
        """Between the least and the greatest conceivable total of ``metric``: the scale on which it varies."""
        values = self.costs[metric]
        high = np.where(self.allowed, values, -np.inf).max(axis=1)
        low = np.where(self.allowed, values, np.inf).min(axis=1)
        edges = [np.ptp(edge.costs[metric]) for edge in self.boundaries if metric in edge.costs]
        return float((high - low).sum() + sum(edges))
