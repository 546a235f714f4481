"""Everything that a search computes before it tries plans: the scale, ranges, rounded weights, sensitivities, costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.progress import Progress
from tvm import IRModule

from tvm_mpq.calibration import calibrate
from tvm_mpq.files import sha256
from tvm_mpq.frontend import operators
from tvm_mpq.loss import Loss, divergence, get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.runtime.evaluate import SampleLosses
from tvm_mpq.search.candidate_store import load_candidates, save_candidates
from tvm_mpq.search.candidates import LED_BY_LOSS, Candidates, candidate_keys
from tvm_mpq.search.choices import ChoiceSpace
from tvm_mpq.search.confidence import OutputScale, fit_output_scale
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.search.loss_led import fitted_candidates
from tvm_mpq.search.problem import Problem
from tvm_mpq.search.task import Task
from tvm_mpq.sensitivity.equalization import equalize
from tvm_mpq.target import Target, host_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.equalize_channels import Factors, equalize_channels
from tvm_mpq.transform.scale_operators import scale_operators
from tvm_mpq.versions import versions

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What plans are made of and measured with.

    ``mod`` is the network with its output scaled and, by ``factors``, its channels equalized; ``ranges`` are its, and
    ``plain_ranges`` those of the network as it was given. ``fp32`` are the losses of that one, ``scaled`` those of
    ``mod`` in fp32, both on the selection set, which ``evaluator`` runs plans on. ``problem`` has no loss yet.
    """

    task: Task
    mod: IRModule
    scale: OutputScale | None
    factors: Factors
    ranges: TensorRanges
    plain_ranges: TensorRanges
    candidates: Candidates
    loss: Loss
    fp32: SampleLosses
    scaled: SampleLosses
    evaluator: PlanEvaluator
    space: ChoiceSpace
    problem: Problem
    target: Target

    @property
    def fp32_latency(self) -> float:
        """Seconds of the network in fp32."""
        return self.task.costs.predict(PrecisionPlan.uniform(self.space.names, FP32))

    def measure(self, evaluator: PlanEvaluator, plan: PrecisionPlan) -> SampleLosses:
        """The losses of ``plan`` with its rounded weights."""
        return evaluator.losses(plan, *self.candidates.of(plan))


def prepare(task: Task, progress: Progress | None = None, clock: Say = lambda step: None) -> Prepared:
    """Run the steps in order; ``clock`` is told of each when it is done.

    Raises MpqError where loss, data and network do not fit.
    """
    options, splits, target = task.options, task.splits, host_target()
    loss = get_loss(options.loss, probabilities=options.probabilities)
    plain = PlanEvaluator(task.mod, TensorRanges({}, {}), splits.selection, loss, target)
    names = [operator.name for operator in operators(task.mod)]
    fp32 = plain.losses(PrecisionPlan.uniform(names, FP32))
    scalable = options.output_scale and not loss.needs_reference
    scale = fit_output_scale(task.mod, plain) if scalable else None
    mod = scale_operators(task.mod, {} if scale is None else scale.factors)
    clock("scale of the output")

    samples = splits.calibration.take(options.calibration_samples)
    factors = equalize(mod, samples, target, progress) if options.equalize else {}
    mod = equalize_channels(mod, factors)
    by = (options.observer, target, progress, options.loss, options.probabilities)
    ranges = calibrate(mod, samples, *by)
    plain_ranges = calibrate(task.mod, samples, *by) if factors else ranges
    clock("calibration")
    candidates = _candidates(task, mod, scale, factors, ranges, target, progress)
    clock("rounding")
    space = ChoiceSpace.of(mod, options.precisions, candidates)
    problem = space.problem(np.zeros(space.allowed.shape), task.costs)
    evaluator = plain.of(mod, ranges, divergence(loss, options.probabilities))
    scaled = evaluator.losses(PrecisionPlan.uniform(names, FP32))
    return Prepared(
        task=task,
        mod=mod,
        scale=scale,
        factors=factors,
        ranges=ranges,
        plain_ranges=plain_ranges,
        candidates=candidates,
        loss=loss,
        fp32=fp32,
        scaled=scaled,
        evaluator=evaluator,
        space=space,
        problem=problem,
        target=target,
    )


def _candidates(
    task: Task,
    mod: IRModule,
    scale: OutputScale | None,
    factors: Factors,
    ranges: TensorRanges,
    target: Target,
    progress: Progress | None,
) -> Candidates:
    """The rounded weights, from the task's cache where an earlier search has made them."""
    samples, options = task.rounding_data(), task.options
    led = options.rounding.method == LED_BY_LOSS
    parts: dict[str, Any] = {
        "model": task.model_sha256,
        "data": samples.content_hash(),
        "scale": {} if scale is None else scale.factors,
        "ranges": [sorted(ranges.inputs.items()), sorted(ranges.operators.items())],
        "factors": {name: factor.tolist() for name, factor in factors.items()},
        "precisions": [str(precision) for precision in options.precisions],
        "rounding": asdict(options.rounding),
        "led by": [task.step_data().content_hash(), options.loss, options.probabilities] if led else None,
        "versions": versions(),
    }
    key = sha256(json.dumps(parts, sort_keys=True).encode())
    known = None if task.cache is None else load_candidates(task.cache, key)
    if known is not None:
        return known
    made = fitted_candidates(
        mod,
        candidate_keys(mod, options.precisions),
        ranges,
        samples,
        task.step_data(),
        options.rounding,
        target,
        options.loss,
        options.probabilities,
        progress,
    )
    if task.cache is not None:
        save_candidates(task.cache, key, made)
    return made
