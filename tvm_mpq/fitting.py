"""Fitting a given plan to samples: the ranges of tensors, and where it is asked for factors of channels and weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from rich.progress import Progress
from tvm import IRModule

from tvm_mpq.calibration import calibrate
from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqWarning
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.plan_weights import PlanWeights, origin_of
from tvm_mpq.search.candidates import NO_STEP, Candidates, Rounding, candidate_keys
from tvm_mpq.search.loss_led import fitted_candidates
from tvm_mpq.sensitivity.equalization import equalize
from tvm_mpq.target import host_target
from tvm_mpq.transform.equalize_channels import equalize_channels


@dataclass(frozen=True)
class GridOptions:
    """How values become integers.

    ``observer`` is one of :data:`~tvm_mpq.calibration.RANGES`; by ``loss``, whose network gives ``probabilities`` or
    logits, where it says so. Without ``rounding`` the pipeline rounds weights to nearest.
    """

    observer: str = "minmax"
    equalize: bool = False
    rounding: Rounding | None = None
    loss: str = "cross-entropy"
    probabilities: bool = False


def default_rounding(plan: PrecisionPlan) -> Rounding | None:
    """By second moments where a weight has fewer than 8 bits, of which rounding to nearest leaves little; else None."""
    fewer = any(not each.is_float and each.weight_bits < 8 for each in plan.operators.values())
    return Rounding() if fewer else None


def fit_weights(
    mod: IRModule,
    model_sha256: str,
    plan: PrecisionPlan,
    samples: Dataset,
    options: GridOptions,
    seed: int = 0,
    progress: Progress | None = None,
) -> PlanWeights:
    """What ``plan`` needs of the canonical ``mod`` to be compiled, by the inputs of ``samples``.

    With this machine's kernels, whatever the target: it may not run here, and floats rounded in another order would
    give each target grids, and so bytes, of its own. Raises MpqError as :func:`~tvm_mpq.calibration.calibrate` does.
    """
    target, loss = host_target(), (options.loss, options.probabilities)
    factors = equalize(mod, samples, target, progress) if options.equalize else {}
    mod = equalize_channels(mod, factors)
    ranges = calibrate(mod, samples, options.observer, target, progress, *loss)
    candidates = Candidates()
    if options.rounding is not None:
        precisions = list(dict.fromkeys(plan.operators.values()))
        keys = [key for key in candidate_keys(mod, precisions) if key[1] == str(plan[key[0]])]
        candidates = fitted_candidates(
            mod, keys, ranges, samples, samples, options.rounding, target, *loss, progress
        )
        if candidates.step is not None and not candidates.step.taken:
            warnings.warn(f"{NO_STEP}: weights are rounded without it", MpqWarning, stacklevel=2)
    weights, biases = candidates.of(plan)
    origin = origin_of(options.observer, samples, seed)
    return PlanWeights(model_sha256, ranges, weights, biases, {}, factors, origin)
