"""The sensitivity of every operator of a network to every candidate precision, over samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from rich.progress import Progress

from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import Precision
from tvm_mpq.sensitivity.cache import SampleCache
from tvm_mpq.sensitivity.collection import Collected, Feeds, collect
from tvm_mpq.sensitivity.comparison import (
    BiasChanges,
    Comparison,
    Places,
    Weights,
    analysed_operators,
    executable,
    has_weights,
)
from tvm_mpq.sensitivity.losses import RelaxLoss
from tvm_mpq.sensitivity.statistics import curvature_entry, drawn_labels, entry
from tvm_mpq.sensitivity.table import OperatorInfo, Sensitivity, SensitivityTable
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.operator_body import read_body

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Analysis:
    """What is analysed: a canonical network, a loss, calibrated ranges, and the candidate precisions of all operators.

    ``base`` is the plan whose network is run and differentiated, fp32 by default. ``weights`` are integer weights that
    somebody chose for some candidates, and ``biases`` what these add to biases; the base plan has both too.
    ``model_sha256`` names the network in the table and in the cache. ``seed`` is for the labels that a loss without
    labels draws.
    """

    mod: tvm.IRModule
    model_sha256: str
    loss: RelaxLoss
    ranges: TensorRanges
    precisions: Sequence[Precision]
    target: Target
    base: PrecisionPlan | None = None
    weights: Weights = field(default_factory=dict)
    biases: BiasChanges = field(default_factory=dict)
    seed: int = 0

    def run(
        self,
        data: Dataset,
        *,
        reference: Sequence[Array] | None = None,
        cache: Path | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        announce: Callable[[float], None] | None = None,
    ) -> SensitivityTable:
        """The table over all samples of ``data``, a batch of the network's own size at a time.

        ``reference`` are the fp32 network's outputs [samples, …], for losses that compare with them. ``cache`` is a
        folder that keeps what was computed for each sample: an interrupted run goes on where it was. ``announce``
        is told, once the first batch shows it, how many seconds the rest will take. Raises MpqError where data, loss
        and network do not fit.
        """
        kinds = analysed_operators(self.mod)
        loss, labels = self._differentiated(data, reference)
        store = None if cache is None else SampleCache(cache, self.key(data))
        done = Collected() if store is None else Collected.load(store)
        if done.samples < len(data):
            comparison = Comparison(
                self.mod,
                loss,
                self.ranges,
                executable(self.mod, self.precisions),
                self.target,
                base=self.base,
                weights=self.weights,
                biases=self.biases,
                threads=threads,
            )
            batch = comparison.inputs[0].shape[0]
            feeds = Feeds(data, batch, labels, reference if loss.needs_reference else None)
            collect(comparison, feeds, done, store, progress, announce)
        losses, values = done.arrays()
        stationary = loss is not self.loss
        make = curvature_entry if stationary else entry
        return SensitivityTable(
            model_sha256=self.model_sha256,
            data_sha256=data.content_hash(),
            loss=self.loss.name,
            base_loss=0.0 if stationary else float(losses.mean()),
            operators=tuple(_information(self.mod)),
            entries=_entries(done.places, values, kinds, self.precisions, make),
        )

    def key(self, data: Dataset) -> str:
        """The SHA-256 of everything that the products of a sample depend on."""
        digest = hashlib.sha256()
        parts = {
            "model": self.model_sha256,
            "data": data.content_hash(),
            "loss": [self.loss.name, self.loss.probabilities, self.seed],
            "inputs": {k: list(v) for k, v in self.ranges.inputs.items()},
            "operators": {k: list(v) for k, v in self.ranges.operators.items()},
            "precisions": [str(p) for p in self.precisions],
            "instruction": self.target.instruction,
            "base": None if self.base is None else {k: str(v) for k, v in self.base.operators.items()},
        }
        digest.update(json.dumps(parts, sort_keys=True).encode())
        for (operator, precision), given in sorted(self.weights.items()):
            digest.update(f"{operator} {precision}".encode())
            digest.update(given.int8.tobytes())
            digest.update(given.scale.tobytes())
        for (operator, precision), change in sorted(self.biases.items()):
            digest.update(f"{operator} {precision}".encode())
            digest.update(change.tobytes())
        return digest.hexdigest()

    def _differentiated(
        self, data: Dataset, reference: Sequence[Array] | None
    ) -> tuple[RelaxLoss, Array | None]:
        """The loss whose gradients are taken, and its labels [samples, …]."""
        if self.loss.labels is not None and data.labels is None:
            raise MpqError(f"loss {self.loss.name!r} needs labels and the data has none")
        if self.loss.needs_reference and reference is None:
            raise MpqError(f"loss {self.loss.name!r} needs the outputs of the fp32 network as a reference")
        if self.loss.curvature is None or self.base is not None or reference is None:
            return self.loss, data.labels
        if len(reference) > 1:
            raise MpqError(f"loss {self.loss.name!r} can be analysed for networks with one output only")
        return self.loss.curvature, drawn_labels(reference[0], self.loss.probabilities, self.seed)


def _entries(
    places: Places,
    values: npt.NDArray[np.float64],
    kinds: Mapping[str, str],
    precisions: Sequence[Precision],
    make: Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64] | None], Sensitivity],
) -> dict[tuple[str, str], Sensitivity]:
    entries = {}
    for name, kind in kinds.items():
        for precision in precisions:
            place = places.by_input.get(name) if precision.integer_activations else None
            by_input = None if place is None else values[place]
            if has_weights(kind):
                at = places.total.get((name, str(precision)))
                total = None if at is None else values[at]
            else:
                total = by_input
            if total is not None:
                entries[name, str(precision)] = make(total, by_input)
    return entries


def _information(mod: tvm.IRModule) -> list[OperatorInfo]:
    result = []
    for operator in operators(mod):
        size = 0
        if has_weights(operator.kind):
            weight = read_body(mod[operator.global_var_name]).weight
            size = 0 if weight is None else int(weight.size)
        result.append(OperatorInfo(operator.name, operator.kind, size))
    return result
