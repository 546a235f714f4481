"""``tvm-mpq check-cuda``: GPU code without a GPU."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tvm_mpq.cli.console import progress_bar, stdout, write_json
from tvm_mpq.cli.options import (
    CalibrationOption,
    InputShapeOption,
    JsonOption,
    MeanOption,
    ModelArgument,
    PlanOption,
    PrecisionOption,
    ResizeOption,
    ScaleOption,
    check_output_file,
    parse_input_shapes,
    parse_numbers,
    plan_or_precision,
)
from tvm_mpq.errors import MpqError


def check_cuda(
    model: ModelArgument,
    calibration: CalibrationOption,
    target: Annotated[str, typer.Option(metavar="NAME", help="A target with a GPU.")] = "cuda-sm80",
    precision: PrecisionOption = None,
    plan: PlanOption = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Samples to run.")] = 1,
    calibration_samples: Annotated[int, typer.Option(metavar="N", help="Samples to calibrate on.")] = 64,
    input_shape: InputShapeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = "0",
    scale: ScaleOption = "1",
    json: JsonOption = None,
) -> None:
    """Run a network's GPU kernels on this machine's processor, each one checked, and compare with its CPU code.

    Checked are bounds and alignment of every access of memory, races, barriers that not all threads reach, and
    results that depend on the order of threads. It needs g++ and no GPU. The weights and ranges of a searched plan
    are the plan's own.
    """
    check_output_file("--json", json)
    plan_or_precision(plan, precision)
    if samples < 1 or calibration_samples < 1:
        raise MpqError("--samples and --calibration-samples need numbers above 0")
    shapes = parse_input_shapes(input_shape or [])
    means, scales = parse_numbers("--mean", mean), parse_numbers("--scale", scale)
    from tvm_mpq.calibration import calibrate
    from tvm_mpq.cuda_check.check import check_network
    from tvm_mpq.dataset import Preprocess
    from tvm_mpq.frontend import import_onnx, io_specs, operators
    from tvm_mpq.plan import PrecisionPlan
    from tvm_mpq.plan_weights import load_plan
    from tvm_mpq.precision import Precision
    from tvm_mpq.target import host_target, load_target

    gpu = load_target(target)
    mod = import_onnx(model, shapes or None)
    names = [operator.name for operator in operators(mod)]
    if plan is None:
        chosen, weights = PrecisionPlan.uniform(names, Precision.parse(precision or "w8a8")), None
    else:
        chosen, weights = load_plan(plan)
    chosen.check(names)
    gpu.require(chosen.operators.values())
    inputs = io_specs(mod)[0]
    data = Preprocess(resize=resize, mean=means, scale=scales).open(calibration, inputs)
    if weights is not None:
        weights.check_model(model)
        ranges = weights.ranges
    else:
        with progress_bar() as progress:
            ranges = calibrate(mod, data.take(calibration_samples), "minmax", host_target(), progress)
    batches = [
        [batch[spec.name] for spec in inputs] for batch in data.take(samples).batches(inputs[0].shape[0])
    ]
    result = check_network(mod, chosen, ranges, gpu, batches, weights)
    console = stdout()
    if result.idle:
        console.print(f"never called: {', '.join(result.idle)}", soft_wrap=True)
    console.print(
        f"{gpu.name}: {result.kernels} kernels, {result.launches} launches a sample, no fault; compiled in "
        f"{result.compile_seconds:.1f} s, {result.samples} sample(s) in {result.run_seconds:.1f} s",
        soft_wrap=True,
    )
    for index, output in enumerate(result.outputs):
        same = (
            "bit for bit the CPU's"
            if not output.different
            else (
                f"{output.different} of {output.elements} elements differ from the CPU's, "
                f"by {output.largest_difference:.3g} at most (largest magnitude {output.largest:.3g})"
            )
        )
        console.print(f"output {index}: {same}", soft_wrap=True)
    write_json(json, dataclasses.asdict(result))
