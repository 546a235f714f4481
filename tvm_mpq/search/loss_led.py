"""Rounding led by the loss: the step of all weights that it asks for, as long as other samples confirm it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from rich.progress import Progress
from tvm import IRModule

from tvm_mpq.dataset import Dataset
from tvm_mpq.frontend import operators
from tvm_mpq.loss import get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.quantization.covariance import InputStatistics
from tvm_mpq.quantization.loss_step import LossStep, loss_step
from tvm_mpq.search.candidates import (
    LED_BY_LOSS,
    Candidates,
    Key,
    LedByLoss,
    Rounding,
    StepLength,
    candidate_statistics,
    operator_weights,
    round_candidates,
)
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.sensitivity.weight_gradients import weight_gradients
from tvm_mpq.statistics import paired_bootstrap
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.change_biases import ChangeBiases
from tvm_mpq.transform.change_weights import ChangeWeights

_PARTS = tuple(2.0**-power for power in range(12, -1, -1))


def led_by_loss(
    mod: IRModule,
    statistics: Mapping[str, InputStatistics],
    data: Dataset,
    target: Target,
    loss: str = "cross-entropy",
    probabilities: bool = False,
    progress: Progress | None = None,
) -> LedByLoss:
    """The steps of the operators of ``statistics`` in the canonical ``mod``, which gives ``probabilities`` or logits.

    Every other sample of ``data`` gives directions, the rest the length: the one that lowers fp32's loss most surely,
    by the upper end of the paired bootstrap's 95 % interval, where that is below zero. Raises MpqError where data, loss
    and network do not fit.
    """
    given, other = (data.subset(range(first, len(data), 2)) for first in (0, 1))
    differentiable = relax_loss(loss, probabilities=probabilities, labels=data.labels)
    gradients = weight_gradients(mod, differentiable, given, target, list(statistics), progress)
    steps = {
        name: loss_step(found.products, found.sums, found.squares, statistics[name])
        for name, found in gradients.items()
    }
    plan = PrecisionPlan.uniform([operator.name for operator in operators(mod)], FP32)
    exact = get_loss(loss, probabilities=probabilities)
    evaluator = PlanEvaluator(mod, TensorRanges({}, {}), other, exact, target)
    base = evaluator.losses(plan).losses
    best: StepLength | None = None
    for part in _PARTS:
        changes = evaluator.of(stepped(mod, steps, part)).losses(plan).losses - base
        length = StepLength(part, paired_bootstrap(changes))
        if length.change.low > 0.0:
            # Longer is only worse.
            break
        if best is None or length.change.high < best.change.high:
            best = length
    if best is None:
        best = length
    taken = {name: step.times(best.part) for name, step in steps.items()} if best.taken else {}
    return LedByLoss(taken, best)


def fitted_candidates(
    mod: IRModule,
    keys: Sequence[Key],
    ranges: TensorRanges,
    samples: Dataset,
    step_samples: Dataset,
    rounding: Rounding,
    target: Target,
    loss: str = "cross-entropy",
    probabilities: bool = False,
    progress: Progress | None = None,
) -> Candidates:
    """All ``keys`` rounded by the inputs that ``samples`` make, led by the loss on ``step_samples`` where asked to."""
    statistics = candidate_statistics(mod, keys, ranges, samples, target, progress)
    led = None
    if rounding.method == LED_BY_LOSS:
        led = led_by_loss(mod, statistics, step_samples, target, loss, probabilities, progress)
    return round_candidates(mod, keys, statistics, rounding, progress, led)


def stepped(mod: IRModule, steps: Mapping[str, LossStep], part: float) -> IRModule:
    """``mod`` after ``part`` of the steps, in fp32."""
    kinds = {operator.name: operator.kind for operator in operators(mod)}
    weights = {}
    for name, weight in operator_weights(mod).items():
        if name in steps:
            moved = weight + part * steps[name].weights.reshape(weight.shape)
            weights[name] = moved[:, :, 0, 0].T if kinds[name] == "matmul" else moved
    biases = {name: (part * step.bias).astype(np.float32) for name, step in steps.items()}
    passes: Sequence[tvm.transform.Pass] = [ChangeWeights(weights), ChangeBiases(biases)]
    return tvm.transform.Sequential(passes)(mod)
