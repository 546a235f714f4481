"""``tvm-mpq analyze``: how each operator's precision changes the loss."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tvm_mpq.cli.console import progress_bar, stdout
from tvm_mpq.cli.options import (
    CalibrationOption,
    InputShapeOption,
    MeanOption,
    ModelArgument,
    ObserverOption,
    ProbabilitiesOption,
    ResizeOption,
    ScaleOption,
    check_output_file,
    parse_input_shapes,
    parse_numbers,
)
from tvm_mpq.files import user_cache


def analyze_command(
    model: ModelArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The table to write, as JSON.")
    ],
    calibration: CalibrationOption,
    loss: Annotated[
        str,
        typer.Option(
            help="cross-entropy, mse, bce, cosine, ctc, kl (against fp32, no labels) or module:function."
        ),
    ] = "cross-entropy",
    probabilities: ProbabilitiesOption = False,
    precisions: Annotated[
        str, typer.Option(metavar="P,P,…", help="The candidate precisions.")
    ] = "w8a8,w6a8,w4a8",
    samples: Annotated[int, typer.Option(metavar="N", help="Samples to analyse.")] = 512,
    observer: ObserverOption = "minmax",
    calibration_samples: Annotated[int, typer.Option(metavar="N", help="Samples to find ranges on.")] = 256,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Also run the network with each operator at each precision: slow."),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where an interrupted run finds what it had done.",
            show_default="the user's cache",
        ),
    ] = None,
    input_shape: InputShapeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = "0",
    scale: ScaleOption = "1",
    seed: Annotated[int, typer.Option(help="For the labels that kl draws.")] = 0,
) -> None:
    """Estimate for each operator and precision how much it changes the loss, and write that as a table.

    A change below zero lowers the loss. One backward pass for each sample, and each operator again for each precision.
    """
    check_output_file("--output", output)
    shapes = parse_input_shapes(input_shape or [])
    means, scales = parse_numbers("--mean", mean), parse_numbers("--scale", scale)
    from tvm_mpq.cli.sensitivity_table import sensitivity_table
    from tvm_mpq.precision import parse_precisions
    from tvm_mpq.sensitivity.model import analyze_model

    candidates = parse_precisions(precisions)
    console = stdout()

    def announce(seconds: float) -> None:
        console.print(f"analysing {samples} samples takes about {seconds:.0f} s more")

    start = time.perf_counter()
    with progress_bar() as progress:
        table = analyze_model(
            model,
            calibration,
            loss=loss,
            probabilities=probabilities,
            precisions=candidates,
            samples=samples,
            observer=observer,
            calibration_samples=calibration_samples,
            measure=measure,
            input_shapes=shapes or None,
            resize=resize,
            mean=means,
            scale=scales,
            seed=seed,
            output=output,
            cache=(cache or user_cache("sensitivity")).expanduser(),
            progress=progress,
            announce=announce,
        )
    console.print(sensitivity_table(table))
    console.print(
        f"{output}: {len(table.entries)} entries, {time.perf_counter() - start:.1f} s", markup=False
    )
