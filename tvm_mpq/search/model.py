"""The whole road of a search: an ONNX file, samples, a target and a goal in; a plan with its weights out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.progress import Progress
from tvm import IRModule

from tvm_mpq.build import constant_bytes
from tvm_mpq.cost.measure import measure_costs
from tvm_mpq.cost.modelled import model_costs
from tvm_mpq.cost.store import default_cache
from tvm_mpq.cost.table import CostTable
from tvm_mpq.dataset import Dataset, Preprocess
from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import get_loss, gives_probabilities
from tvm_mpq.plan_weights import PlanWeights, beside_plan, origin_of, save_plan
from tvm_mpq.precision import FP32, W8A8
from tvm_mpq.runtime.machine import Machine
from tvm_mpq.search.belief import Belief
from tvm_mpq.search.change import Estimate, estimate
from tvm_mpq.search.choices import loss_estimates
from tvm_mpq.search.evaluation import report, stored_bytes_of
from tvm_mpq.search.goal import LATENCY, STORAGE, Goal
from tvm_mpq.search.journal import Journal
from tvm_mpq.search.linearization import Estimates, estimates_around, sensitivity
from tvm_mpq.search.preparation import Prepared, prepare
from tvm_mpq.search.problem import Choices
from tvm_mpq.search.refine import Found, Measured, Refinement
from tvm_mpq.search.result import SearchResult
from tvm_mpq.search.splits import Splits
from tvm_mpq.search.task import SearchOptions, Task
from tvm_mpq.sensitivity.table import SensitivityTable
from tvm_mpq.target import Target, load_target, missing_features
from tvm_mpq.versions import versions

_SLACK = 1.05
"""Without a limit on latency, a plan may take so many times what uniform w8a8 takes, if fp32 does not take less."""

Data = str | Path | Dataset


def search_model(
    model: str | Path,
    calibration: Data,
    *,
    goal: Goal,
    output: str | Path,
    selection: Data | None = None,
    evaluation: Data | None = None,
    target: str | Target = "host",
    options: SearchOptions | None = None,
    sensitivity_table: SensitivityTable | None = None,
    costs: CostTable | None = None,
    device: Machine | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    preprocess: Preprocess | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> SearchResult:
    """Find a plan for the ONNX file ``model`` that meets ``goal`` on ``target``, and write it to ``output``.

    The best plan so far is always there, with its weights beside it (:mod:`tvm_mpq.plan_weights`). ``selection`` and
    ``evaluation`` are cut from the other sets where they are not given (:class:`~tvm_mpq.search.splits.Splits`).
    ``costs`` are measured on ``device`` or here where they are not given, or modelled for a target that does not run
    here. ``cache`` is a folder that lets an interrupted search go on. Raises MpqError for all that a user can mend.
    """
    chosen = options or SearchOptions()
    machine = target if isinstance(target, Target) else load_target(target)
    machine.require(chosen.precisions)
    mod = import_onnx(model, input_shapes)
    chosen = replace(chosen, probabilities=chosen.probabilities or gives_probabilities(operators(mod)))
    digest = sha256(Path(model).read_bytes())
    splits = _splits(mod, calibration, selection, evaluation, chosen, preprocess or Preprocess())
    splits.check(get_loss(chosen.loss, probabilities=chosen.probabilities))
    started = time.perf_counter()
    seconds: dict[str, float] = {}

    def clock(step: str) -> None:
        seconds[step] = time.perf_counter() - started - sum(seconds.values())
        say(f"{step}: {seconds[step]:.1f} s")

    table = costs or _costs(mod, machine, chosen, digest, device, progress)
    if table.model_sha256 != digest:
        raise MpqError(f"the cost table is of another network than {model}: run 'tvm-mpq costs' on it")
    clock("costs")
    task = Task(mod, digest, splits, table, goal, chosen, sensitivity_table, Path(output), cache)
    prepared = prepare(task, progress, clock)
    first = loss_estimates(prepared.space, sensitivity_table or sensitivity(prepared, None, progress))
    clock("sensitivity")
    limits = _limits(prepared)
    found = _refine(prepared, first, limits, progress)
    clock("search")
    result = report(prepared, found, limits, first[2])
    clock("evaluation")
    return replace(result, seconds=seconds)


def _splits(
    mod: IRModule,
    calibration: Data,
    selection: Data | None,
    evaluation: Data | None,
    options: SearchOptions,
    preprocess: Preprocess,
) -> Splits:
    inputs, outputs = io_specs(mod)
    shape = outputs[0].shape
    classification = get_loss(options.loss, probabilities=options.probabilities).classification
    classes = shape[1] if classification and len(shape) > 1 else None

    def opened(data: Data | None) -> Dataset | None:
        if data is None or isinstance(data, Dataset):
            return data
        return preprocess.open(data, inputs, classes)

    first = opened(calibration)
    assert first is not None
    return Splits.of(first, opened(selection), opened(evaluation), options.seed)


def _costs(
    mod: IRModule,
    target: Target,
    options: SearchOptions,
    digest: str,
    device: Machine | None,
    progress: Progress | None,
) -> CostTable:
    if target.gpu is not None or (device is None and missing_features(target)):
        return model_costs(mod, target, options.precisions, model_sha256=digest, threads=options.threads)
    return measure_costs(
        mod,
        target,
        options.precisions,
        model_sha256=digest,
        threads=options.threads,
        cache=default_cache(),
        progress=progress,
        device=device,
    )


def _limits(prepared: Prepared) -> dict[str, float]:
    """Limits on the problem's latency (seconds) and storage (bytes of what plans change)."""
    space, goal = prepared.space, prepared.task.goal
    eight = prepared.problem.totals(space.uniform(W8A8))
    fp32 = {LATENCY: prepared.fp32_latency, STORAGE: float(constant_bytes(prepared.task.mod))}
    limits = goal.limits(fp32)
    if goal.max_latency is None:
        limits[LATENCY] = min(_SLACK * eight[LATENCY], fp32[LATENCY])
    if STORAGE in limits:
        # What the arrays leave out: alignment, tables, the constants of conversions.
        exact = stored_bytes_of(prepared, space.plan(space.uniform(W8A8)))
        limits[STORAGE] -= exact - eight[STORAGE]
    return limits


def _refine(
    prepared: Prepared,
    first: Estimates,
    limits: Mapping[str, float],
    progress: Progress | None,
) -> Found:
    task, options, space = prepared.task, prepared.task.options, prepared.space
    journal = Journal.open(_journal_path(task), _journal_key(prepared))
    bar = None if progress is None else progress.add_task("measuring plans", total=options.evaluations)

    def measure(choices: Choices) -> Estimate:
        plan = space.plan(choices)
        text = " ".join(str(plan[name]) for name in space.names)
        if text not in journal.known:
            journal.add(text, prepared.measure(prepared.evaluator, plan))
        if progress is not None and bar is not None:
            progress.advance(bar)
        return estimate(journal.known[text], prepared.scaled, options.evaluations)

    def save(best: Measured) -> None:
        if task.output is not None:
            plan = space.plan(best.choices)
            save_plan(task.output, plan, _weights(prepared, best.choices))

    mean, error, second = first
    refinement = Refinement(
        prepared.problem,
        Belief(mean, error, second),
        task.goal.minimize,
        limits,
        _max_loss(prepared),
        measure,
        options.evaluations,
        options.seed,
        (lambda centre: estimates_around(prepared, centre, (mean, error, second), progress))
        if options.relinearize
        else None,
        save,
    )
    smaller = [precision for precision in space.precisions if precision != FP32]
    return refinement.run([space.uniform(precision) for precision in smaller])


def _max_loss(prepared: Prepared) -> float:
    """The limit on the change of the loss against fp32 with its output scaled; what scaling gained is allowed for."""
    asked = prepared.task.goal.max_loss_increase
    gained = float((prepared.fp32.losses - prepared.scaled.losses).mean())
    return math.inf if asked is None else asked + gained


def _journal_path(task: Task) -> Path | None:
    return None if task.output is None else beside_plan(task.output, ".journal")


def _journal_key(prepared: Prepared) -> str:
    """The hash of everything that a plan's losses on the selection set depend on."""
    task = prepared.task
    options = asdict(task.options)
    parts = {
        "model": task.model_sha256,
        "data": task.splits.hashes(),
        "scale": {} if prepared.scale is None else prepared.scale.factors,
        "options": {k: options[k] for k in ("loss", "probabilities", "observer", "equalize", "rounding")}
        | {k: options[k] for k in ("calibration_samples", "rounding_samples")},
        "versions": versions(),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode())


def _weights(prepared: Prepared, choices: Choices) -> PlanWeights:
    plan = prepared.space.plan(choices)
    weights, biases = prepared.candidates.of(plan)
    options = prepared.task.options
    samples = prepared.task.splits.calibration.take(options.calibration_samples)
    origin = origin_of(options.observer, samples, options.seed)
    scales = {} if prepared.scale is None else prepared.scale.factors
    return PlanWeights(
        prepared.task.model_sha256, prepared.ranges, weights, biases, scales, prepared.factors, origin
    )
