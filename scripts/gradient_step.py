"""What one step of all fp32 weights down the loss's gradient gains on other samples: the room for loss-led rounding.

    python scripts/gradient_step.py MODEL.onnx --calibration DATA --selection DEV …

The step is that of :mod:`tvm_mpq.quantization.loss_step`; codes can only follow it. Printed: ``shared``, the parts of
the gradients by weights and by biases that two halves of the samples have in common (none: noise), and the change of
the loss ± half its 95 % interval for parts of the step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tvm_mpq.calibration import calibrate
from tvm_mpq.cli.options import parse_input_shapes, parse_numbers
from tvm_mpq.dataset import Dataset, Preprocess
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, W8A8
from tvm_mpq.quantization.loss_step import loss_step
from tvm_mpq.search.candidates import candidate_keys, candidate_statistics
from tvm_mpq.search.confidence import fit_output_scale
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.search.loss_led import stepped
from tvm_mpq.search.splits import Splits
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.sensitivity.weight_gradients import weight_gradients
from tvm_mpq.target import host_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.scale_operators import scale_operators

PARTS = (1 / 1024, 1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0)


def measure(options: argparse.Namespace) -> None:
    """Print the table."""
    mod = import_onnx(options.model, parse_input_shapes(options.input_shape) or None)
    inputs, outputs = io_specs(mod)
    preprocess = Preprocess(
        options.resize, parse_numbers("--mean", options.mean), parse_numbers("--scale", options.scale)
    )

    def opened(path: Path | None) -> Dataset | None:
        return None if path is None else preprocess.open(path, inputs, outputs[0].shape[1])

    calibration = opened(options.calibration)
    assert calibration is not None
    splits = Splits.of(calibration, opened(options.selection), None, 0)
    loss, nothing, target = get_loss(options.loss), TensorRanges({}, {}), host_target()
    scale = fit_output_scale(mod, PlanEvaluator(mod, nothing, splits.selection, loss, target))
    if scale is not None:
        print(f"the output is scaled by {scale.factor:.3f}")
        mod = scale_operators(mod, scale.factors)
    data = splits.calibration.take(options.samples)
    keys, ranges = candidate_keys(mod, [W8A8]), calibrate(mod, data.take(256), "minmax", target)
    statistics = candidate_statistics(mod, keys, ranges, data.take(256), target)
    differentiable = relax_loss(options.loss, labels=data.labels)
    steps = {}
    print(f"{'operator':40} shared: weights, biases")
    for name, found in weight_gradients(mod, differentiable, data, target, list(statistics)).items():
        steps[name] = loss_step(found.products, found.sums, found.squares, statistics[name])
        print(f"{name[-40:]:40} {steps[name].shared[0]:.3f}, {steps[name].shared[1]:.3f}", flush=True)
    fp32 = PrecisionPlan.uniform([operator.name for operator in operators(mod)], FP32)
    sets = {"calibration": data, "selection": splits.selection, "evaluation": splits.evaluation}
    evaluator = PlanEvaluator(mod, nothing, data, loss, target)
    evaluators = {k: evaluator.on(part) for k, part in sets.items()}
    before = {k: evaluator.losses(fp32).losses for k, evaluator in evaluators.items()}
    for part in PARTS:
        network, row = stepped(mod, steps, part), []
        for k, evaluator in evaluators.items():
            change = evaluator.of(network).losses(fp32).losses - before[k]
            row.append(f"{k} {change.mean():+.4f} ± {1.96 * change.std() / len(change) ** 0.5:.4f}")
        print(f"1/{1 / part:.0f} of the step: {', '.join(row)}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure a step of all weights down the loss's gradient.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="samples with labels")
    parser.add_argument("--selection", type=Path, help="cut from the calibration set where it is not given")
    parser.add_argument("--loss", default="cross-entropy")
    parser.add_argument("--samples", type=int, default=1000, help="of the calibration set")
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224")
    parser.add_argument("--resize", type=int, default=None)
    parser.add_argument("--mean", default="0")
    parser.add_argument("--scale", default="1")
    try:
        measure(parser.parse_args(arguments))
    except MpqError as error:
        parser.exit(2, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
