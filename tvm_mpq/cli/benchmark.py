"""``tvm-mpq benchmark``: latency, storage and loss of a package beside fp32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mpq.cli.console import progress_bar, stdout, write_json
from tvm_mpq.cli.options import (
    JsonOption,
    LimitOption,
    MeanOption,
    ProbabilitiesOption,
    ResizeOption,
    RpcKeyOption,
    RpcOption,
    RpcTimeoutOption,
    RpcTrackerOption,
    ScaleOption,
    ThreadsOption,
    check_output_file,
    parse_machine,
    parse_numbers,
)
from tvm_mpq.errors import MpqError

if TYPE_CHECKING:
    from tvm_mpq.runtime.package import Package
    from tvm_mpq.runtime.profile import Profile

_PROFILE_WIDTH = 150


def benchmark(
    package: Annotated[Path, typer.Argument(help="The package.", metavar="PACKAGE")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="An .npz with labels, or a folder of images with labels.csv."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The fp32 package to compare with, if not the one beside."),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            help="cross-entropy, mse, bce, cosine, ctc, kl (against fp32, no labels) or module:function."
        ),
    ] = "cross-entropy",
    probabilities: ProbabilitiesOption = False,
    threads: ThreadsOption = 1,
    repeat: Annotated[int, typer.Option(metavar="N", help="Runs to time.")] = 100,
    limit: LimitOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = "0",
    scale: ScaleOption = "1",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Time every operator against this machine's peaks; without --data, only that."
        ),
    ] = False,
    rpc: RpcOption = None,
    rpc_tracker: RpcTrackerOption = None,
    rpc_key: RpcKeyOption = None,
    rpc_timeout: RpcTimeoutOption = 300.0,
    json: JsonOption = None,
) -> None:
    """Measure a package's latency, storage and loss, with its fp32 package in turns beside it, here or on a device."""
    check_output_file("--json", json)
    means, scales = parse_numbers("--mean", mean), parse_numbers("--scale", scale)
    from tvm_mpq.cli.tables import operators_table, result_table, verdict
    from tvm_mpq.dataset import open_dataset
    from tvm_mpq.loss import get_loss
    from tvm_mpq.runtime import harness
    from tvm_mpq.runtime.package import Package

    machine = parse_machine(rpc, rpc_tracker, rpc_key, rpc_timeout)
    if data is None and not profile:
        raise MpqError(
            "give --data DATA to measure the loss on, or --profile for the latency of each operator"
        )
    if profile and (rpc is not None or rpc_tracker is not None):
        raise MpqError("--profile times kernels on this machine only: run it on the device itself")
    loaded = Package.load(package)
    machine.check(loaded)
    if data is None:
        _profile(loaded, threads, repeat, json)
        return
    fp32, reason = harness.find_baseline(loaded, package, baseline)
    output = loaded.metadata.outputs[0].shape
    classes = output[1] if get_loss(loss).classification and len(output) > 1 else None
    samples = open_dataset(
        data,
        loaded.metadata.inputs,
        resize=resize,
        mean=means,
        scale=scales,
        limit=limit,
        classes=classes,
    )
    with progress_bar() as progress:
        result = harness.benchmark(
            loaded,
            samples,
            baseline=fp32,
            baseline_reason=reason,
            loss=loss,
            probabilities=probabilities,
            threads=threads,
            repeat=repeat,
            seed=seed,
            profiled=profile,
            progress=progress,
            machine=machine,
        )
    console = stdout()
    console.print(result_table(loaded.metadata.name, result))
    for line in verdict(result):
        console.print(line, markup=False)
    console.print(operators_table(result.operators))
    if result.profile is not None:
        _print_profile(result.profile)
    write_json(json, result.to_dict())


def _profile(package: Package, threads: int, repeat: int, json: Path | None) -> None:
    """Profile on noise: a kernel's time does not depend on what it multiplies."""
    from tvm_mpq.runtime.arrays import noise
    from tvm_mpq.runtime.profile import profile
    from tvm_mpq.runtime.session import Session

    found = profile(Session(package, threads), noise(package.metadata.inputs), repeat)
    _print_profile(found)
    write_json(json, {"profile": found.to_dict()})


def _print_profile(found: Profile) -> None:
    from tvm_mpq.cli.profile_table import profile_lines, profile_table

    console = stdout(_PROFILE_WIDTH)
    console.print(profile_table(found))
    for line in profile_lines(found):
        console.print(line, markup=False, soft_wrap=True)
