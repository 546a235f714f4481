"""``tvm-mpq compile``: an ONNX file to a package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tvm_mpq.cli.console import progress_bar, stdout, write_json
from tvm_mpq.cli.options import (
    CorrectBiasesOption,
    EqualizeOption,
    InputShapeOption,
    JsonOption,
    LossOption,
    MeanOption,
    ModelArgument,
    ObserverOption,
    PlanOption,
    PrecisionOption,
    ProbabilitiesOption,
    ResizeOption,
    ScaleOption,
    TargetOption,
    check_output_file,
    parse_input_shapes,
    parse_numbers,
    plan_or_precision,
)
from tvm_mpq.cli.search import (
    DEFAULT_CANDIDATES,
    CacheOption,
    EvaluationOption,
    EvaluationsOption,
    MaxLatencyOption,
    MaxLossOption,
    MaxStorageOption,
    MinimizeOption,
    OutputScaleOption,
    SelectionOption,
    make_goal,
    make_options,
    run_search,
)
from tvm_mpq.errors import MpqError


def compile_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The package to write.")],
    target: TargetOption = "host",
    calibration: Annotated[
        Path | None, typer.Option(metavar="DATA", help="An .npz, or a folder of images with labels.csv.")
    ] = None,
    precision: PrecisionOption = None,
    plan: PlanOption = None,
    minimize: MinimizeOption = "loss",
    max_loss_increase: MaxLossOption = None,
    max_latency: MaxLatencyOption = None,
    max_storage: MaxStorageOption = None,
    selection: SelectionOption = None,
    evaluation: EvaluationOption = None,
    loss: LossOption = "cross-entropy",
    probabilities: ProbabilitiesOption = False,
    evaluations: EvaluationsOption = 40,
    output_scale: OutputScaleOption = True,
    cache: CacheOption = None,
    observer: ObserverOption = "minmax",
    equalize: EqualizeOption = False,
    rounding: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="How weights are rounded: nearest or second-order.",
            show_default="second-order below 8 bits; else nearest, biases as they are",
        ),
    ] = None,
    correct_biases: CorrectBiasesOption = True,
    samples: Annotated[int, typer.Option(metavar="N", help="Samples to calibrate on.")] = 256,
    input_shape: InputShapeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = "0",
    scale: ScaleOption = "1",
    dump_ir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the module after each pass to DIR.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Also compile the fp32 package to compare with.")
    ] = True,
    tuning_logs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Use what 'tvm-mpq tune' logged there.", show_default="what comes along"
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(metavar="N", help="Threads that it will run with: chooses the tuned tiles.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of a search; compiling a plan draws nothing at random.")] = 0,
    json: JsonOption = None,
) -> None:
    """Compile an ONNX network to a package, with the fp32 package to compare with beside it.

    With a limit (--max-storage, --max-latency, --max-loss-increase) the plan is searched first, and written beside the
    package; 'tvm-mpq search' has more options.
    """
    check_output_file("--output", output)
    check_output_file("--json", json)
    plan_or_precision(plan, precision)
    limits = (max_loss_increase, max_latency, max_storage)
    limited = minimize != "loss" or any(limit is not None for limit in limits)
    if limited and (plan is not None or precision is not None):
        raise MpqError(
            "limits are for a search, which chooses the precisions: leave out --plan and --precision"
        )
    if limited and calibration is None:
        raise MpqError("a search needs samples: give --calibration DATA")
    if rounding is None and not correct_biases and not limited:
        raise MpqError("--no-correct-biases says how to round: give --rounding METHOD as well")
    goal = make_goal(minimize, max_loss_increase, max_latency, max_storage) if limited else None
    shapes = parse_input_shapes(input_shape or [])
    means, scales = parse_numbers("--mean", mean), parse_numbers("--scale", scale)
    from tvm_mpq.cli.tables import bytes_text, operators_table, units_line
    from tvm_mpq.compiler import compile_model
    from tvm_mpq.dataset import Preprocess
    from tvm_mpq.plan_weights import load_plan
    from tvm_mpq.runtime.package import baseline_path
    from tvm_mpq.search.candidates import Rounding

    start = time.perf_counter()
    if goal is not None:
        assert calibration is not None
        plan = output.with_suffix(".plan.json")
        run_search(
            model,
            calibration,
            goal,
            plan,
            make_options(
                DEFAULT_CANDIDATES,
                loss,
                probabilities,
                observer,
                equalize,
                rounding or "second-order",
                correct_biases,
                evaluations,
                output_scale,
                threads,
                seed,
            ),
            selection=selection,
            evaluation=evaluation,
            target=target,
            input_shapes=shapes or None,
            preprocess=Preprocess(resize=resize, mean=means, scale=scales),
            cache=cache,
        )
    chosen, weights = (None, None) if plan is None else load_plan(plan)
    with progress_bar() as progress:
        package = compile_model(
            model,
            target=target,
            calibration=calibration,
            plan=chosen,
            weights=weights,
            precision=precision or "w8a8",
            observer=observer,
            # A search has done both.
            equalize=equalize and goal is None,
            rounding=None if rounding is None or goal is not None else Rounding(rounding, correct_biases),
            loss=loss,
            probabilities=probabilities,
            samples=samples,
            input_shapes=shapes or None,
            output=output,
            dump_ir=dump_ir,
            preprocess=Preprocess(resize=resize, mean=means, scale=scales),
            baseline=baseline,
            tuning_logs=tuning_logs,
            threads=threads,
            seed=seed,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    metadata = package.metadata
    fp32 = baseline_path(output) if metadata.baseline is not None else None
    console = stdout()
    console.print(operators_table(metadata.operators))
    storage = metadata.storage
    in_file, in_memory = (
        f"{bytes_text(size)} (× {size / max(1, storage.weights_fp32):.3f} of fp32)"
        for size in (storage.weights, storage.weights_resident)
    )
    console.print(
        f"{output}: {bytes_text(output.stat().st_size)}, weights {in_file}, in memory {in_memory}, "
        f"target {metadata.target.name} ({metadata.target.instruction}), compiled in {seconds:.1f} s",
        markup=False,
        soft_wrap=True,
    )
    if metadata.target.note:
        console.print(f"{metadata.target.name}: {metadata.target.note}", markup=False, soft_wrap=True)
        console.print(units_line(metadata.calls), markup=False)
    if fp32 is not None:
        console.print(f"{fp32}: the fp32 package that 'tvm-mpq benchmark' compares with", markup=False)
    write_json(
        json,
        {
            "package": str(output),
            "baseline": None if fp32 is None else str(fp32),
            "seconds": seconds,
            "metadata": metadata.to_dict(),
        },
    )
