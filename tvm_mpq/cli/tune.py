"""``tvm-mpq tune``: search better tiles for a network's kernels by measuring them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mpq.cli.console import progress_bar, stdout, write_json
from tvm_mpq.cli.options import (
    InputShapeOption,
    JsonOption,
    ModelArgument,
    PlanOption,
    PrecisionOption,
    RpcKeyOption,
    RpcOption,
    RpcTimeoutOption,
    RpcTrackerOption,
    TargetOption,
    check_output_file,
    parse_device,
    parse_input_shapes,
    plan_or_precision,
)


def tune(
    model: ModelArgument,
    target: TargetOption = "host",
    precision: PrecisionOption = None,
    plan: PlanOption = None,
    trials: Annotated[
        int, typer.Option(metavar="N", help="Tiles to measure, for the plan and as many for the baseline.")
    ] = 1500,
    tuning_logs: Annotated[
        Path, typer.Option(metavar="DIR", help="Where records are read and added, a folder a target.")
    ] = Path("tuning_logs"),
    input_shape: InputShapeOption = None,
    threads: Annotated[int, typer.Option(metavar="N", help="Threads that the network will run with.")] = 1,
    time_limit: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Start no batch after so many minutes.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Also tune fp32, with as many trials.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the tiles that chance picks, and of the cost model.")] = 0,
    rpc: RpcOption = None,
    rpc_tracker: RpcTrackerOption = None,
    rpc_key: RpcKeyOption = None,
    rpc_timeout: RpcTimeoutOption = 300.0,
    json: JsonOption = None,
) -> None:
    """Search better tiles for a network's kernels by measuring them here, or on devices.

    All devices that the tracker has of the key measure at the same time.

    Run it again with the same --tuning-logs to go on after an interruption: nothing is measured twice.
    """
    check_output_file("--json", json)
    plan_or_precision(plan, precision)
    shapes = parse_input_shapes(input_shape or [])
    from tvm_mpq.cli.tables import tuning_table
    from tvm_mpq.plan import PrecisionPlan
    from tvm_mpq.tuning.tune import tune_model

    device = parse_device(rpc, rpc_tracker, rpc_key, rpc_timeout)
    console = stdout()
    with progress_bar() as progress:
        result = tune_model(
            model,
            target=target,
            plan=None if plan is None else PrecisionPlan.load(plan),
            precision=precision or "w8a8",
            trials=trials,
            logs=tuning_logs,
            input_shapes=shapes or None,
            threads=threads,
            time_limit=None if time_limit is None else 60 * time_limit,
            baseline=baseline,
            seed=seed,
            device=device,
            say=lambda line: console.print(line, markup=False, soft_wrap=True),
            progress=progress,
        )
    console.print(tuning_table(result))
    untuned = sorted({kernel.name for kernel in result.kernels if not kernel.tuned})
    if untuned:
        console.print(f"Not tuned yet: {', '.join(untuned)}. Run the command again.", markup=False)
    console.print(f"Use it: tvm-mpq compile … --tuning-logs {tuning_logs}", markup=False, soft_wrap=True)
    write_json(json, result.to_dict())
