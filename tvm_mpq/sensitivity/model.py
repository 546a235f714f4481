"""The whole road of an analysis: an ONNX file, samples and a loss in, the table out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from tvm_mpq.calibration import calibrate
from tvm_mpq.dataset import Dataset, open_dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import get_loss, gives_probabilities
from tvm_mpq.precision import Precision
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.sensitivity.analysis import Analysis
from tvm_mpq.sensitivity.fp32_outputs import fp32_outputs
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.sensitivity.measurement import measured
from tvm_mpq.sensitivity.table import SensitivityTable
from tvm_mpq.target import host_target


def analyze_model(
    model: str | Path,
    calibration: str | Path | Dataset,
    *,
    precisions: Sequence[Precision],
    loss: str = "cross-entropy",
    probabilities: bool = False,
    samples: int = 512,
    observer: str = "minmax",
    calibration_samples: int = 256,
    measure: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    resize: int | None = None,
    mean: tuple[float, ...] = (0.0,),
    scale: tuple[float, ...] = (1.0,),
    seed: int = 0,
    output: str | Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    announce: Callable[[float], None] | None = None,
) -> SensitivityTable:
    """The sensitivity of every operator of the ONNX file ``model`` to each of ``precisions``.

    ``calibration`` (a path or an open data set) gives at most ``calibration_samples`` to find ranges and ``samples`` to
    analyse. With ``output`` the table is written there, with ``measure`` after each measured entry too. ``cache`` and
    ``announce`` as in :meth:`~tvm_mpq.sensitivity.analysis.Analysis.run`. Runs on this machine, whatever the target of
    the plan will be: integer arithmetic is the same everywhere. Raises MpqError for everything that a user can mend.
    """
    for precision in precisions:
        if precision.is_float:
            raise MpqError(f"{precision} is what the others are compared with: name integer precisions only")
    mod = import_onnx(model, input_shapes)
    inputs, outputs = io_specs(mod)
    _check_batch(inputs, outputs)
    probabilities = probabilities or gives_probabilities(operators(mod))
    exact = get_loss(loss, probabilities=probabilities)
    classes = outputs[0].shape[1] if exact.classification and len(outputs[0].shape) > 1 else None
    if isinstance(calibration, Dataset):
        data = calibration
    else:
        data = open_dataset(calibration, inputs, resize=resize, mean=mean, scale=scale, classes=classes)
    target = host_target()
    chosen = data.take(samples)
    differentiable = relax_loss(loss, probabilities=probabilities, labels=chosen.labels)
    ranges = calibrate(mod, data.take(calibration_samples), observer, target, progress, loss, probabilities)
    reference = None
    if differentiable.needs_reference:
        reference = fp32_outputs(mod, chosen, target)
    digest = sha256(Path(model).read_bytes())
    analysis = Analysis(mod, digest, differentiable, ranges, tuple(precisions), target, seed=seed)
    table = analysis.run(chosen, reference=reference, cache=cache, progress=progress, announce=announce)

    def save(result: SensitivityTable) -> None:
        if output is not None:
            result.save(output)

    save(table)
    if measure:
        table = measured(table, PlanEvaluator(mod, ranges, chosen, exact, target), progress, save)
    return table


def _check_batch(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    batch = inputs[0].shape[0] if inputs and inputs[0].shape else 0
    for spec in (*inputs, *outputs):
        if not spec.shape or spec.shape[0] != batch:
            raise MpqError(
                f"{spec.name!r} has shape {list(spec.shape)} where the batch is {batch}: "
                "a loss for each sample needs networks whose first axes are all the batch"
            )
