"""The compiled analysis of a network: from a batch of samples to the noise of every candidate in every operator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvm_mpq.build import build
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, W8A8, Precision
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.sensitivity.backward import LOSS, add_gradients
from tvm_mpq.sensitivity.candidates import Candidates, copy_name
from tvm_mpq.sensitivity.losses import RelaxLoss
from tvm_mpq.target import Target
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import INTEGER_KINDS, WEIGHTED_KINDS, AnnotatePrecision
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline

Array = npt.NDArray[Any]
Weights = Mapping[tuple[str, str], QuantizedWeights]
"""(operator, precision name) → integer weights that somebody chose; others are rounded to nearest."""
BiasChanges = Mapping[tuple[str, str], npt.NDArray[Any]]
"""(operator, precision name) → what is added to the operator's bias [O] in that precision."""


@dataclass(frozen=True)
class Products:
    """For each sample of a batch: its loss [n], and Σ δ·g and Σ δ² of comparisons, float64 [comparisons, n, 2]."""

    losses: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """Where in :attr:`Products.values` the products of (operator, precision) are, and those of an operator's input."""

    total: Mapping[tuple[str, str], int]
    by_input: Mapping[str, int]

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(
            [[*key, place] for key, place in self.total.items()] + [list(self.by_input.items())]
        )

    @classmethod
    def from_json(cls, text: str) -> Places:
        """Read what :meth:`to_json` wrote."""
        *total, by_input = json.loads(text)
        return cls({(name, precision): place for name, precision, place in total}, dict(by_input))


class Comparison:
    """A network, its gradients and all candidates of its operators as one compiled function.

    ``places`` says which result is which.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        loss: RelaxLoss,
        ranges: TensorRanges,
        candidates: Mapping[str, Sequence[Precision]],
        target: Target,
        *,
        base: PrecisionPlan | None = None,
        weights: Weights | None = None,
        biases: BiasChanges | None = None,
        threads: int | None = None,
    ) -> None:
        """Compile for this machine, as ``target`` describes it.

        ``candidates`` are the precisions to try of each operator. ``base`` is the plan at which the network runs and
        gradients are taken, fp32 by default; integer operators then differentiate as their fp32 originals do, at their
        quantized tensors. ``weights`` and ``biases``, by operator and precision, are those of candidates and of the
        base plan in place of rounding to nearest. Raises MpqError for a candidate that the target does not execute, and
        as :func:`~tvm_mpq.sensitivity.backward.add_gradients` does.
        """
        names = [operator.name for operator in operators(mod)]
        plan = PrecisionPlan.uniform(names, FP32) if base is None else base
        visit = Candidates(candidates, _grids(mod, ranges, target))
        builder, per_sample = add_gradients(mod, loss, list(candidates), visit)
        results = {LOSS: per_sample}
        results |= {f"{name} by input": result for name, result in visit.by_input.items()}
        results |= {copy_name(*key): result for key, result in visit.total.items()}
        module = builder.build(results)
        added = {o.name: visit.plan.get(o.name, FP32) for o in operators(module) if o.name not in names}
        own = {name: (name, str(precision)) for name, precision in plan.operators.items()}
        keys = own | {copy_name(*key): key for key in visit.total}
        pipeline = Pipeline(
            PrecisionPlan({**plan.operators, **added}),
            ranges,
            target.instruction,
            weights={name: weights[key] for name, key in keys.items() if weights and key in weights},
            biases={name: biases[key] for name, key in keys.items() if biases and key in biases},
            any_codes=True,
        )
        annotated = pipeline.annotate(module)
        _check_executed(annotated, visit.plan)
        built = build(pipeline.lower(annotated), target)
        self.inputs, _ = io_specs(module)
        first = len(visit.by_input)
        self.places = Places(
            {key: first + place for place, key in enumerate(visit.total)},
            {name: place for place, name in enumerate(visit.by_input)},
        )
        self.constants, self.activations = built.constants, built.activations
        self._main = relax.VirtualMachine(built.executable, tvm.cpu())["main"]
        self._threads = available_threads() if threads is None else threads

    def __call__(self, feeds: Mapping[str, Array]) -> Products:
        """The products of a batch: an array for each of :attr:`inputs`."""
        arguments = [
            tvm.runtime.tensor(np.ascontiguousarray(feeds[s.name], np.dtype(s.dtype))) for s in self.inputs
        ]
        outputs = run_with_threads(self._threads, lambda: self._main(*arguments))
        losses, *values = [output.numpy() for output in outputs]
        return Products(losses.astype(np.float64), np.array(values, np.float64))


def analysed_operators(mod: tvm.IRModule) -> dict[str, str]:
    """Name → kind of the operators that have integer kernels, in order."""
    return {o.name: o.kind for o in operators(mod) if o.kind in INTEGER_KINDS}


def executable(mod: tvm.IRModule, precisions: Sequence[Precision]) -> dict[str, tuple[Precision, ...]]:
    """The precisions that each operator with an integer kernel can be executed in; without any it is left out."""
    found: dict[str, tuple[Precision, ...]] = {name: () for name in analysed_operators(mod)}
    for precision in precisions:
        plan = PrecisionPlan.uniform([o.name for o in operators(mod)], precision)
        for _, function, _ in attr.calls(tvm.transform.Sequential([AnnotatePrecision(plan)])(mod)):
            name = attr.text(function, attr.OPERATOR)
            if name in found and attr.executed(function) == precision:
                found[name] = (*found[name], precision)
    return {name: each for name, each in found.items() if each}


def has_weights(kind: str) -> bool:
    """Whether operators of ``kind`` have weights to quantize."""
    return kind in WEIGHTED_KINDS


def _grids(mod: tvm.IRModule, ranges: TensorRanges, target: Target) -> dict[relax.Var, Grid]:
    """The grid of every tensor that an 8-bit operator may read."""
    plan = PrecisionPlan.uniform([o.name for o in operators(mod)], W8A8)
    annotated = Pipeline(plan, ranges, target.instruction).annotate(mod)
    found: dict[relax.Var, Grid] = {}
    by_name = attr.input_grids(annotated["main"])
    for name, parameter in zip(attr.names(mod["main"], attr.INPUTS), mod["main"].params, strict=True):
        if name in by_name:
            found[parameter] = by_name[name]
    for (variable, _, _), (_, function, _) in zip(attr.calls(mod), attr.calls(annotated), strict=True):
        if attr.text(function, attr.SCALE):
            found[variable] = Grid(float(function.attrs[attr.SCALE]), int(function.attrs[attr.ZERO_POINT]))
    return found


def _check_executed(annotated: tvm.IRModule, plan: Mapping[str, Precision]) -> None:
    for _, function, _ in attr.calls(annotated):
        name = attr.text(function, attr.OPERATOR)
        if name in plan and attr.executed(function) != plan[name]:
            raise MpqError(f"{name} cannot be analysed: {attr.text(function, attr.REASON)}")
