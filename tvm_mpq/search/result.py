"""What a search reports: the shape of ``search --json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_mpq.runtime.evaluate import SampleLosses
from tvm_mpq.search.candidates import StepLength
from tvm_mpq.statistics import paired_bootstrap


@dataclass(frozen=True)
class Change:
    """A network's loss on one set of samples, and its change against fp32 with the paired-bootstrap 95 % interval.

    ``accuracy`` and ``accuracy_change`` (of 1, not points) are None where labels are not classes.
    """

    loss: float
    delta: float
    low: float
    high: float
    accuracy: float | None
    accuracy_change: float | None

    @classmethod
    def of(cls, found: SampleLosses, fp32: SampleLosses, seed: int = 0) -> Change:
        """The change from ``fp32`` to ``found``, sample by sample."""
        interval = paired_bootstrap(found.losses - fp32.losses, seed=seed)
        accuracy, base = found.accuracy, fp32.accuracy
        return cls(
            float(np.mean(found.losses)),
            interval.mean,
            interval.low,
            interval.high,
            accuracy,
            None if accuracy is None or base is None else accuracy - base,
        )


@dataclass(frozen=True)
class Row:
    """A network of the report: predicted latency (seconds), bytes of its weights, its loss on the evaluation set."""

    name: str
    latency: float
    storage: int
    evaluation: Change


@dataclass(frozen=True)
class Tried:
    """A plan that was measured: its change of the loss on the selection set ± its standard error, and its costs."""

    precisions: Mapping[str, int]
    change: float
    error: float
    latency: float
    storage: float


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    ``rows`` compare, on samples that neither calibration nor selection saw: fp32, fp32 with the output's scale chosen
    (what of the change is only that), uniform w8a8 rounded to nearest, and the plan. ``binding`` names limits that no
    plan meets: then the plan is the nearest to them. ``selection`` is the plan's change where it was selected, which is
    too good to be believed. ``front`` are further plans on the evaluation set
    (:mod:`~tvm_mpq.search.pareto`). ``latency_kind`` is ``measured`` (on ``latency_cpu``) or ``modelled``, and
    ``latency_notes`` say what a model makes of the precisions (:mod:`~tvm_mpq.cost.notes`). ``step`` is there where the
    loss led the rounding.
    """

    rows: tuple[Row, ...]
    front: tuple[Row, ...]
    selection: Change
    output_scale: Mapping[str, float]
    goal: Mapping[str, Any]
    limits: Mapping[str, float]
    binding: tuple[str, ...]
    precisions: Mapping[str, int]
    tried: tuple[Tried, ...]
    latency_kind: str
    latency_cpu: str
    splits: Mapping[str, Any]
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    latency_notes: tuple[str, ...] = ()
    step: StepLength | None = None

    @property
    def plan(self) -> Row:
        """The plan's row."""
        return self.rows[-1]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        return dataclasses.asdict(self)
