"""The loss as a sum over operators around one plan: gradients there, and the noise of every choice."""

from __future__ import annotations

import numpy as np
from rich.progress import Progress

from tvm_mpq.dataset import Dataset
from tvm_mpq.search.choices import loss_estimates
from tvm_mpq.search.preparation import Prepared
from tvm_mpq.search.problem import Choices, Floats
from tvm_mpq.sensitivity.analysis import Analysis
from tvm_mpq.sensitivity.fp32_outputs import fp32_outputs
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.sensitivity.table import SensitivityTable

Estimates = tuple[Floats, Floats, Floats]
"""Mean, error and second-order part of each choice's change of the loss, [N, P], as the belief takes them."""


def sensitivity(
    prepared: Prepared, base: Choices | None = None, progress: Progress | None = None
) -> SensitivityTable:
    """The change of the loss where one operator alone leaves fp32, or the plan ``base``, with its rounded weights.

    On calibration samples that the weights were not rounded by: what was fitted to samples looks better on them. Kept
    in the task's cache.
    """
    task, options = prepared.task, prepared.task.options
    data = task.gradient_data()
    loss = relax_loss(options.loss, probabilities=options.probabilities, labels=data.labels)
    analysis = Analysis(
        prepared.mod,
        f"{task.model_sha256} {prepared.scale}",
        loss,
        prepared.ranges,
        [precision for precision in prepared.space.precisions if not precision.is_float],
        prepared.target,
        base=None if base is None else prepared.space.plan(base),
        weights=prepared.candidates.weights,
        biases=prepared.candidates.biases,
        seed=options.seed,
    )
    reference = _reference(prepared, data, loss.needs_reference)
    return analysis.run(data, reference=reference, cache=task.cache, progress=progress)


def _reference(prepared: Prepared, data: Dataset, needed: bool) -> list[np.typing.NDArray[np.float32]] | None:
    return fp32_outputs(prepared.task.mod, data, prepared.target) if needed else None


def estimates_around(
    prepared: Prepared, base: Choices, first: Estimates, progress: Progress | None = None
) -> Estimates:
    """The estimates of changes from the plan ``base``, whose own choices change nothing.

    ``first`` are those around fp32: leaving 8 bits for a float undoes what they say of the choice in ``base``.
    """
    space = prepared.space
    mean, error, second = loss_estimates(space, sensitivity(prepared, base, progress))
    rows = np.arange(len(base))
    for column, precision in enumerate(space.precisions):
        if precision.is_float:
            mean[:, column] = -first[0][rows, base]
            error[:, column] = np.hypot(first[1][rows, base], first[2][rows, base])
            second[:, column] = 0.0
    for values in (mean, error, second):
        values[rows, base] = 0.0
    return mean, error, second
