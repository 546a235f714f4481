"""``tvm-mpq search``: a plan that meets a goal on a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_mpq.cli.console import progress_bar, stderr_line, stdout, write_json
from tvm_mpq.cli.options import (
    CalibrationOption,
    CorrectBiasesOption,
    EqualizeOption,
    InputShapeOption,
    JsonOption,
    LossOption,
    MeanOption,
    ModelArgument,
    ObserverOption,
    ProbabilitiesOption,
    ResizeOption,
    RpcKeyOption,
    RpcOption,
    RpcTimeoutOption,
    RpcTrackerOption,
    ScaleOption,
    TargetOption,
    ThreadsOption,
    check_output_file,
    parse_device,
    parse_input_shapes,
    parse_numbers,
)
from tvm_mpq.errors import MpqError
from tvm_mpq.files import user_cache
from tvm_mpq.precision import SEARCHED

if TYPE_CHECKING:
    from tvm_mpq.search.goal import Goal
    from tvm_mpq.search.result import SearchResult
    from tvm_mpq.search.task import SearchOptions

MaxStorageOption = Annotated[
    str | None,
    typer.Option(metavar="0.2x|1.5MB", help="Most bytes of weights, in all or as a part of fp32's."),
]
MaxLatencyOption = Annotated[
    str | None,
    typer.Option(
        metavar="0.7x|8ms", help="Most time a run.", show_default="1.05 of uniform w8a8's, or fp32's if less"
    ),
]
MaxLossOption = Annotated[
    float | None, typer.Option(metavar="D", help="Most increase of the loss against fp32; may be negative.")
]
MinimizeOption = Annotated[str, typer.Option(metavar="METRIC", help="loss, latency or storage.")]
SelectionOption = Annotated[
    Path | None,
    typer.Option(metavar="DATA", help="Samples to select by.", show_default="a part of the calibration set"),
]
EvaluationOption = Annotated[
    Path | None,
    typer.Option(metavar="DATA", help="Samples to report on.", show_default="a part of what was given"),
]
PrecisionsOption = Annotated[
    str,
    typer.Option(metavar="P[,P…]", help="The candidates; operators stay out of float unless fp32 is one."),
]
EvaluationsOption = Annotated[int, typer.Option(metavar="N", help="Plans to measure on the selection set.")]
OutputScaleOption = Annotated[
    bool,
    typer.Option(
        "--output-scale/--no-output-scale", help="Let the loss choose the scale of the network's output."
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="What an interrupted search finds again is kept there.",
        show_default="the user's cache",
    ),
]
DEFAULT_CANDIDATES = ",".join(map(str, SEARCHED))


def search(
    model: ModelArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PLAN.json", help="The plan; its weights lie beside it.")
    ],
    calibration: CalibrationOption,
    selection: SelectionOption = None,
    evaluation: EvaluationOption = None,
    target: TargetOption = "host",
    minimize: MinimizeOption = "loss",
    max_loss_increase: MaxLossOption = None,
    max_latency: MaxLatencyOption = None,
    max_storage: MaxStorageOption = None,
    precisions: PrecisionsOption = DEFAULT_CANDIDATES,
    sensitivity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What 'tvm-mpq analyze' wrote; spares the analysis.")
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What 'tvm-mpq costs' wrote.",
            show_default="measured on the device or here, or modelled for a target that is not",
        ),
    ] = None,
    loss: LossOption = "cross-entropy",
    probabilities: ProbabilitiesOption = False,
    evaluations: EvaluationsOption = 40,
    output_scale: OutputScaleOption = True,
    front: Annotated[
        int, typer.Option(metavar="N", help="Also report the best plans for N limits on storage.")
    ] = 0,
    observer: ObserverOption = "minmax",
    equalize: EqualizeOption = False,
    rounding: Annotated[
        str, typer.Option(metavar="METHOD", help="How weights are rounded: nearest or second-order.")
    ] = "second-order",
    correct_biases: CorrectBiasesOption = True,
    threads: ThreadsOption = 1,
    input_shape: InputShapeOption = None,
    resize: ResizeOption = None,
    mean: MeanOption = "0",
    scale: ScaleOption = "1",
    cache: CacheOption = None,
    seed: Annotated[int, typer.Option(help="Of splits, proposals and the bootstrap.")] = 0,
    rpc: RpcOption = None,
    rpc_tracker: RpcTrackerOption = None,
    rpc_key: RpcKeyOption = None,
    rpc_timeout: RpcTimeoutOption = 300.0,
    json: JsonOption = None,
) -> None:
    """Find the precision of every operator that gives the least loss, latency or storage under limits."""
    check_output_file("--output", output)
    check_output_file("--json", json)
    goal = make_goal(minimize, max_loss_increase, max_latency, max_storage)
    shapes = parse_input_shapes(input_shape or [])
    device = parse_device(rpc, rpc_tracker, rpc_key, rpc_timeout)
    if costs is not None and device is not None:
        raise MpqError("give --costs or a device to measure them on, not both")
    means, scales = parse_numbers("--mean", mean), parse_numbers("--scale", scale)
    from tvm_mpq.cost.table import CostTable
    from tvm_mpq.dataset import Preprocess
    from tvm_mpq.sensitivity.table import SensitivityTable

    options = make_options(
        precisions,
        loss,
        probabilities,
        observer,
        equalize,
        rounding,
        correct_biases,
        evaluations,
        output_scale,
        threads,
        seed,
        front,
    )
    result = run_search(
        model,
        calibration,
        goal,
        output,
        options,
        selection=selection,
        evaluation=evaluation,
        target=target,
        sensitivity_table=None if sensitivity is None else SensitivityTable.load(sensitivity),
        costs=None if costs is None else CostTable.load(costs),
        device=device,
        input_shapes=shapes or None,
        preprocess=Preprocess(resize=resize, mean=means, scale=scales),
        cache=cache,
    )
    write_json(json, result.to_dict())


def run_search(
    model: Path,
    calibration: Path,
    goal: Goal,
    output: Path,
    options: SearchOptions,
    *,
    cache: Path | None,
    **others: Any,
) -> SearchResult:
    """Search with progress on stderr and print what was found; ``others`` are those of ``search_model``."""
    from tvm_mpq.cli.search_tables import print_search
    from tvm_mpq.search.model import search_model

    with progress_bar() as progress:
        result = search_model(
            model,
            calibration,
            goal=goal,
            output=output,
            options=options,
            cache=(cache or user_cache("search")).expanduser(),
            progress=progress,
            say=stderr_line,
            **others,
        )
    console = stdout()
    print_search(console, result)
    console.print(f"{output}: the plan, for 'tvm-mpq compile {model} --plan {output}'", markup=False)
    return result


def make_goal(
    minimize: str, max_loss_increase: float | None, max_latency: str | None, max_storage: str | None
) -> Goal:
    """The goal that options ask for; raises MpqError for one that makes no sense."""
    from tvm_mpq.search.goal import LATENCY, STORAGE, Goal, Limit

    return Goal(
        minimize,
        max_loss_increase,
        None if max_latency is None else Limit.parse("--max-latency", LATENCY, max_latency),
        None if max_storage is None else Limit.parse("--max-storage", STORAGE, max_storage),
    )


def make_options(
    precisions: str,
    loss: str,
    probabilities: bool,
    observer: str,
    equalize: bool,
    rounding: str,
    correct_biases: bool,
    evaluations: int,
    output_scale: bool,
    threads: int,
    seed: int,
    front: int = 0,
) -> SearchOptions:
    """How to search, as options ask for it; raises MpqError for unknown precisions."""
    from tvm_mpq.precision import parse_precisions
    from tvm_mpq.search.candidates import Rounding
    from tvm_mpq.search.task import SearchOptions

    return SearchOptions(
        precisions=parse_precisions(precisions),
        loss=loss,
        probabilities=probabilities,
        observer=observer,
        equalize=equalize,
        rounding=Rounding(rounding, correct_biases),
        evaluations=evaluations,
        output_scale=output_scale,
        threads=threads,
        seed=seed,
        front=front,
    )
