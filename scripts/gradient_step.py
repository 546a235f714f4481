"""What one step of all fp32 weights down the loss's gradient gains on other samples: the room for loss-led rounding.

    python scripts/gradient_step.py MODEL.onnx --calibration DATA --selection DEV …

The step of an operator minimises  ⟨G, δ⟩ + ½ Σ_rows c_r δ_r C δ_rᵀ  with G = E[g (x − μ)ᵀ] the gradient by its
weights (the bias takes up the inputs' mean μ), C the damped covariance of its inputs and c_r = E Σ_positions g_r²: the
Kronecker factors of K-FAC (Martens & Grosse, arXiv 1503.05671), the second one diagonal. Rounding led by the loss would
round to these weights. Printed: ``shared``, the part of G's squared length in that metric that two halves of the
samples have in common (none: noise), and the change of the loss ± half its 95 % interval for parts of the step.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax
from tvm.runtime import tensor

from tvm_mpq.build import build
from tvm_mpq.calibration import calibrate
from tvm_mpq.dataset import Dataset, Preprocess
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, W8A8
from tvm_mpq.quantization.gptq import damped
from tvm_mpq.quantization.patches import Window, patches
from tvm_mpq.search.candidates import operator_weights
from tvm_mpq.search.confidence import fit_output_scale
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.search.splits import Splits
from tvm_mpq.sensitivity.adjoint import gate
from tvm_mpq.sensitivity.backward import LOSS, Differentiated, add_gradients
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder, one_call
from tvm_mpq.sensitivity.collection import Feeds
from tvm_mpq.sensitivity.input_statistics import input_statistics, sources
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.target import host_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.change_biases import ChangeBiases
from tvm_mpq.transform.change_weights import ChangeWeights
from tvm_mpq.transform.lift_constants import LiftConstants
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.pipeline import Pipeline
from tvm_mpq.transform.scale_operators import scale_operators

Floats = npt.NDArray[np.float64]

DAMPING = 0.03
PARTS = (1 / 4096, 1 / 1024, 1 / 256, 1 / 64, 1 / 16)


class Gradients:
    """Sums over samples: of g xᵀ [groups, O/groups, K] and g [O] of even and of odd samples, and of g² [O]."""

    def __init__(self) -> None:
        self.products: list[Floats | float] = [0.0, 0.0]
        self.sums: list[Floats | float] = [0.0, 0.0]
        self.squares: Floats | float = 0.0

    def add(self, index: int, x: npt.NDArray[np.float32], g: npt.NDArray[np.float32], window: Window) -> None:
        """Add sample ``index`` with the inputs x and the gradients g in front of the activation, both as ONNX's."""
        pixels = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x.reshape(-1, 1, 1, x.shape[-1])
        rows = g.reshape(g.shape[1], -1) if g.ndim == 4 else g.reshape(-1, g.shape[-1]).T
        grouped = rows.reshape(window.groups, -1, rows.shape[1])
        product = grouped @ patches(pixels, window).transpose(0, 2, 1)
        self.products[index % 2] += product.astype(np.float64)
        self.sums[index % 2] += rows.sum(axis=1, dtype=np.float64)
        self.squares += np.square(rows, dtype=np.float64).sum(axis=1)


def collect_gradients(mod: IRModule, loss: str, data: Dataset) -> dict[str, Gradients]:
    """The sums of every operator with weights, over ``data``."""
    found: dict[str, relax.Var] = {}
    names = list(operator_weights(mod))

    def visit(builder: CanonicalBuilder, operator: Differentiated) -> None:
        body, g = read_body(operator.function), operator.gradient
        if (body.low, body.high) != (-math.inf, math.inf):
            y, through = relax.Var("x0", operator.result.ty), relax.Var("x1", g.ty)
            gated = one_call([y, through], gate(y, body.low, body.high, through))
            g = builder.call(f"{operator.name}:gate", "gate", gated, [operator.result, g])
        x = relax.Var("x0", operator.inputs[0].ty)
        same = one_call([x], relax.op.multiply(x, relax.const(1.0, "float32")))
        found[f"{operator.name}:g"] = g
        found[f"{operator.name}:x"] = builder.call(f"{operator.name}:x", "copy", same, [operator.inputs[0]])

    builder, per_sample = add_gradients(mod, relax_loss(loss), names, visit)
    module = builder.build({LOSS: per_sample, **found})
    target, lift = host_target(), LiftConstants()
    plan = PrecisionPlan.uniform([operator.name for operator in operators(module)], FP32)
    pipeline = Pipeline(plan, TensorRanges({}, {}), target.instruction)
    annotated = pipeline.annotate(module)
    windows = {name: source.window for name, source in sources(annotated).items()}
    executable = build(pipeline.lower(annotated, lift), target).executable
    main = relax.VirtualMachine(executable, tvm.cpu())["main"]
    inputs = io_specs(module)[0]
    feeds = Feeds(data, 1, data.labels, None)
    result = {name: Gradients() for name in names}
    for index in range(len(data)):
        batch = feeds.batch(index)
        arguments = [
            tensor(np.ascontiguousarray(batch[s.name].reshape(s.shape), np.dtype(s.dtype))) for s in inputs
        ]
        outputs = dict(zip(found, list(main(*arguments, *lift.values))[1:], strict=True))
        for name, sums in result.items():
            x, g = (outputs[f"{name}:{part}"].numpy() for part in "xg")
            sums.add(index, x, g, windows[name])
    return result


def steps(mod: IRModule, loss: str, data: Dataset) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """The change of each operator's weights [groups, O/groups, K] and what it asks of the bias [O]."""
    target = host_target()
    names = [operator.name for operator in operators(mod)]
    ranges = calibrate(mod, data.take(256), "minmax", target)
    plan = PrecisionPlan.uniform(names, W8A8)
    statistics = input_statistics(mod, plan, ranges, data.take(256), target, with_reference=False)
    weights, biases = {}, {}
    print(f"{'operator':40} shared")
    for name, sums in collect_gradients(mod, loss, data).items():
        mean, second = statistics[name].mean, statistics[name].second
        covariance = damped(second - mean[:, :, None] * mean[:, None, :], DAMPING)
        squares = np.asarray(sums.squares) / len(data)
        curvature = (squares + 0.1 * squares.mean() + 1e-30).reshape(len(mean), -1, 1)
        halves, solved = [], []
        for products, total in zip(sums.products, sums.sums, strict=True):
            of_mean = np.asarray(total).reshape(len(mean), -1)[:, :, None] * mean[:, None, :]
            halves.append((np.asarray(products) - of_mean) / (len(data) / 2))
            solved.append(np.linalg.solve(covariance, halves[-1].transpose(0, 2, 1)).transpose(0, 2, 1))
        step = -(solved[0] + solved[1]) / 2 / curvature
        length = -((halves[0] + halves[1]) / 2 * step).sum()
        shared = (halves[0] * solved[1] / curvature).sum() / length if length > 0.0 else 0.0
        print(f"{name[-40:]:40} {shared:+.3f}", flush=True)
        weights[name] = step
        biases[name] = -(step * mean[:, None, :]).sum(axis=2).reshape(-1)
    return weights, biases


def moved(mod: IRModule, weights: dict[str, Floats], biases: dict[str, Floats], part: float) -> IRModule:
    """``mod`` after ``part`` of the step."""
    kinds = {operator.name: operator.kind for operator in operators(mod)}
    changed = {}
    for name, weight in operator_weights(mod).items():
        new = weight + part * weights[name].reshape(weight.shape)
        changed[name] = new[:, :, 0, 0].T if kinds[name] == "matmul" else new
    shifts = {name: (part * bias).astype(np.float32) for name, bias in biases.items()}
    return tvm.transform.Sequential([ChangeWeights(changed), ChangeBiases(shifts)])(mod)


def numbers(text: str) -> tuple[float, ...]:
    """``1,2,3``."""
    return tuple(float(part) for part in text.split(","))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure a step of all weights down the loss's gradient.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="samples with labels")
    parser.add_argument("--selection", type=Path, help="cut from the calibration set where it is not given")
    parser.add_argument("--loss", default="cross-entropy")
    parser.add_argument("--samples", type=int, default=1000, help="of the calibration set")
    parser.add_argument("--input-shape", default=None, metavar="NAME:1,3,224,224")
    parser.add_argument("--resize", type=int, default=None)
    parser.add_argument("--mean", type=numbers, default=(0.0,))
    parser.add_argument("--scale", type=numbers, default=(1.0,))
    options = parser.parse_args(arguments)
    shapes = None
    if options.input_shape:
        name, extents = options.input_shape.rsplit(":", 1)
        shapes = {name: [int(extent) for extent in extents.split(",")]}
    mod = import_onnx(options.model, shapes)
    inputs, outputs = io_specs(mod)
    preprocess = Preprocess(resize=options.resize, mean=options.mean, scale=options.scale)

    def opened(path: Path | None) -> Dataset | None:
        return None if path is None else preprocess.open(path, inputs, outputs[0].shape[1])

    calibration = opened(options.calibration)
    assert calibration is not None
    splits = Splits.of(calibration, opened(options.selection), None, 0)
    loss, nothing = get_loss(options.loss), TensorRanges({}, {})
    scale = fit_output_scale(mod, PlanEvaluator(mod, nothing, splits.selection, loss, host_target()))
    if scale is not None:
        print(f"the output is scaled by {scale.factor:.3f}")
        mod = scale_operators(mod, scale.factors)
    data = splits.calibration.take(options.samples)
    weights, biases = steps(mod, options.loss, data)
    fp32 = PrecisionPlan.uniform([operator.name for operator in operators(mod)], FP32)
    sets = {"calibration": data, "selection": splits.selection, "evaluation": splits.evaluation}
    evaluators = {k: PlanEvaluator(mod, nothing, part, loss, host_target()) for k, part in sets.items()}
    before = {k: evaluator.losses(fp32).losses for k, evaluator in evaluators.items()}
    for part in PARTS:
        network, row = moved(mod, weights, biases, part), []
        for k, evaluator in evaluators.items():
            change = evaluator.of(network).losses(fp32).losses - before[k]
            row.append(f"{k} {change.mean():+.4f} ± {1.96 * change.std() / len(change) ** 0.5:.4f}")
        print(f"1/{1 / part:.0f} of the step: {', '.join(row)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
