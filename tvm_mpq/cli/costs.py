"""``tvm-mpq costs``: the latency of every operator at every precision, and of every boundary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mpq.cli.console import progress_bar, stdout
from tvm_mpq.cli.options import (
    InputShapeOption,
    ModelArgument,
    RpcKeyOption,
    RpcOption,
    RpcTimeoutOption,
    RpcTrackerOption,
    TargetOption,
    ThreadsOption,
    check_output_file,
    parse_device,
    parse_input_shapes,
)
from tvm_mpq.errors import MpqError


def costs(
    model: ModelArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The cost table to write, as JSON.")
    ],
    target: TargetOption = "host",
    precisions: Annotated[
        str, typer.Option(metavar="P[,P…]", help="The candidates; fp32 is always one.")
    ] = "w8a8",
    threads: ThreadsOption = 1,
    modelled: Annotated[
        bool, typer.Option("--modelled", help="A roofline model from the target's file; nothing is run.")
    ] = False,
    checks: Annotated[
        int, typer.Option(metavar="N", help="Random mixed plans to measure as a check of the table.")
    ] = 3,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where measured kernels are kept; the user's cache by default."),
    ] = None,
    input_shape: InputShapeOption = None,
    seed: Annotated[int, typer.Option(help="Of the random plans.")] = 0,
    rpc: RpcOption = None,
    rpc_tracker: RpcTrackerOption = None,
    rpc_key: RpcKeyOption = None,
    rpc_timeout: RpcTimeoutOption = 300.0,
) -> None:
    """Measure what each operator costs at each precision, here or on a device, for the search to choose by."""
    check_output_file("--output", output)
    shapes = parse_input_shapes(input_shape or [])
    from tvm_mpq.cli.cost_table import check_lines, cost_table
    from tvm_mpq.cost.measure import measure_costs
    from tvm_mpq.cost.modelled import model_costs
    from tvm_mpq.cost.store import default_cache
    from tvm_mpq.files import sha256
    from tvm_mpq.frontend import import_onnx
    from tvm_mpq.precision import parse_precisions
    from tvm_mpq.target import load_target

    machine = load_target(target)
    device = parse_device(rpc, rpc_tracker, rpc_key, rpc_timeout)
    if modelled and device is not None:
        raise MpqError("give --modelled or a device to measure on, not both")
    chosen = parse_precisions(precisions)
    mod = import_onnx(model, shapes or None)
    digest = sha256(model.read_bytes())
    if modelled:
        table = model_costs(mod, machine, chosen, model_sha256=digest, threads=threads)
    else:
        with progress_bar() as progress:
            table = measure_costs(
                mod,
                machine,
                chosen,
                model_sha256=digest,
                threads=threads,
                cache=cache or default_cache(),
                checks=checks,
                seed=seed,
                progress=progress,
                device=device,
            )
    table.save(output)
    console = stdout()
    console.print(cost_table(table))
    for line in check_lines(table):
        console.print(line, markup=False, soft_wrap=True)
