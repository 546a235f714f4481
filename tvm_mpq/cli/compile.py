"""``tvm-mpq compile``: an ONNX file to a package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tvm_mpq.cli.console import progress_bar, stdout, write_json
from tvm_mpq.cli.options import (
    JsonOption,
    MeanOption,
    ResizeOption,
    ScaleOption,
    check_output_file,
    parse_input_shapes,
    parse_numbers,
)
from tvm_mpq.errors import MpqError


def compile_command(
    model: Annotated[Path, typer.Argument(help="The network.", metavar="MODEL.onnx")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The package to write.")],
    target: Annotated[
        str, typer.Option(metavar="NAME", help="A name of 'tvm-mpq targets', or a target's .toml file.")
    ] = "host",
    calibration: Annotated[
        Path | None, typer.Option(metavar="DATA", help="An .npz, or a folder of images with labels.csv.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="One precision for every operator.", show_default="w8a8")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN.json", help="A precision for each operator instead.")
    ] = None,
    observer: Annotated[
        str, typer.Option(help="How ranges are found: minmax, percentile, mse or entropy.")
    ] = "minmax",
    samples: Annotated[int, typer.Option(metavar="N", help="Samples to calibrate on.")] = 256,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:1,3,224,224", help="The shape of an input; may be given for each."),
    ] = None,
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
    seed: Annotated[
        int, typer.Option(help="Recorded in the package; compiling draws nothing at random.")
    ] = 0,
    json: JsonOption = None,
) -> None:
    """Compile an ONNX network to a package, with the fp32 package to compare with beside it."""
    check_output_file("--output", output)
    check_output_file("--json", json)
    if plan is not None and precision is not None:
        raise MpqError("give --plan or --precision, not both")
    shapes = parse_input_shapes(input_shape or [])
    means, scales = parse_numbers("--mean", mean), parse_numbers("--scale", scale)
    from tvm_mpq.cli.tables import bytes_text, operators_table
    from tvm_mpq.compiler import Preprocess, compile_model
    from tvm_mpq.plan import PrecisionPlan
    from tvm_mpq.runtime.package import baseline_path

    start = time.perf_counter()
    with progress_bar() as progress:
        package = compile_model(
            model,
            target=target,
            calibration=calibration,
            plan=None if plan is None else PrecisionPlan.load(plan),
            precision=precision or "w8a8",
            observer=observer,
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
