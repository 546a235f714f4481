"""What each way to choose grids and to round does to the loss, at uniform precisions: one option changed at a time.

    python scripts/bench_grids.py MODEL.onnx --calibration DATA --evaluation DEV [--precisions w8a8,w6a8,w4a8] …

Nothing here is chosen by the evaluation set. Printed for each: the change of the loss against fp32 with its
paired-bootstrap 95 % interval, and the mean divergence of the outputs from fp32's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Table

from tvm_mpq.cli.console import progress_bar, stdout
from tvm_mpq.cli.options import parse_input_shapes, parse_numbers
from tvm_mpq.dataset import Dataset, Preprocess
from tvm_mpq.errors import MpqError
from tvm_mpq.fitting import GridOptions, fit_weights
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import divergence, get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, parse_precisions
from tvm_mpq.search.candidates import Rounding
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.statistics import paired_bootstrap
from tvm_mpq.target import host_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.equalize_channels import equalize_channels

_BEST = Rounding("second-order", True)


def variants(loss: str) -> dict[str, GridOptions]:
    """The options, by what is said of them."""

    def of(
        observer: str = "minmax", equalize: bool = False, rounding: Rounding | None = _BEST
    ) -> GridOptions:
        return GridOptions(observer, equalize, rounding, loss)

    return {
        "nearest": of(rounding=Rounding("nearest", False)),
        "nearest, biases corrected": of(rounding=Rounding("nearest", True)),
        "second-order": of(rounding=Rounding("second-order", False)),
        "second-order, biases corrected": of(),
        "… loss-aware": of(rounding=Rounding("loss-aware", True)),
        "… ranges by percentile": of("percentile"),
        "… ranges by mse": of("mse"),
        "… ranges by entropy": of("entropy"),
        "… ranges by loss": of("loss"),
        "… equalized": of(equalize=True),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, help="the last half of the calibration set if not given")
    parser.add_argument("--precisions", default="w8a8,w6a8,w4a8")
    parser.add_argument("--samples", type=int, default=256, help="of the calibration set")
    parser.add_argument("--loss", default="cross-entropy")
    parser.add_argument("--only", help="a comma-separated list of the rows, by parts of their names")
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224")
    parser.add_argument("--resize", type=int)
    parser.add_argument("--mean", default="0")
    parser.add_argument("--scale", default="1")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    try:
        rows = measure(options)
    except MpqError as error:
        parser.exit(2, f"error: {error}\n")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    """Print the table and return its rows."""
    mod = import_onnx(options.model, parse_input_shapes(options.input_shape) or None)
    inputs, outputs = io_specs(mod)
    preprocess = Preprocess(
        options.resize, parse_numbers("--mean", options.mean), parse_numbers("--scale", options.scale)
    )
    loss, target = get_loss(options.loss), host_target()
    classes = outputs[0].shape[1] if loss.classification else None
    calibration = preprocess.open(options.calibration, inputs, classes)
    evaluation: Dataset
    if options.evaluation is None:
        evaluation = calibration.subset(range(1, len(calibration), 2))
        calibration = calibration.subset(range(0, len(calibration), 2))
    else:
        evaluation = preprocess.open(options.evaluation, inputs, classes)
    names = [operator.name for operator in operators(mod)]
    precisions = parse_precisions(options.precisions)
    table = Table("", *map(str, precisions))
    rows: list[dict[str, object]] = []
    console, companion = stdout(), divergence(loss, False)
    plain = PlanEvaluator(mod, TensorRanges({}, {}), evaluation, loss, target, divergence=companion)
    fp32, float_outputs = None, None
    wanted = None if options.only is None else options.only.split(",")
    for title, grids in variants(options.loss).items():
        if wanted is not None and not any(part in title for part in wanted):
            continue
        cells = []
        for precision in precisions:
            plan = PrecisionPlan.uniform(names, precision)
            with progress_bar() as progress:
                fitted = fit_weights(mod, "", plan, calibration.take(options.samples), grids, 0, progress)
            if fp32 is None or float_outputs is None:
                float_outputs = plain.outputs(PrecisionPlan.uniform(names, FP32))
                fp32 = plain.of_outputs(float_outputs, float_outputs).losses
                console.print(f"fp32: {fp32.mean():.4f} on {len(evaluation)} samples", soft_wrap=True)
            evaluator = plain.of(equalize_channels(mod, fitted.factors), fitted.ranges)
            found = evaluator.of_outputs(
                evaluator.outputs(plan, fitted.weights, fitted.biases), reference=float_outputs
            )
            change = paired_bootstrap(found.losses - fp32)
            assert found.divergence is not None
            away = float(found.divergence.mean())
            cells.append(f"{change.mean:+.4f} ({change.low:+.4f} … {change.high:+.4f}), {away:.4f}")
            console.print(f"{title}, {precision}: {cells[-1]}", markup=False, soft_wrap=True)
            rows.append(
                {
                    "grids": title,
                    "precision": str(precision),
                    "change": [change.mean, change.low, change.high],
                    "divergence": away,
                    "accuracy": None if found.correct is None else float(found.correct.mean()),
                }
            )
        table.add_row(title, *cells)
    console.print(table)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
