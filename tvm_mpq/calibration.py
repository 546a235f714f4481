"""Calibration: run the network in float and watch the range of every tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.progress import Progress
from tvm import IRModule, cpu, relax
from tvm.runtime import tensor

from tvm_mpq.build import build
from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.quantization.observers import OBSERVERS, Observer, make_observer
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.sensitivity.loss_ranges import loss_ranges
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline

BY_LOSS = "loss"
RANGES = (*OBSERVERS, BY_LOSS)
"""How ranges can be found."""


def calibrate(
    mod: IRModule,
    dataset: Dataset,
    observer: str,
    target: Target,
    progress: Progress | None = None,
    loss: str = "cross-entropy",
    probabilities: bool = False,
) -> TensorRanges:
    """The ranges of inputs and operator outputs of the canonical ``mod`` over ``dataset``, a batch in memory at a time.

    ``observer`` is one of :data:`RANGES`; by "loss" they are those that cost ``loss`` least, of a network that gives
    ``probabilities`` or logits (:mod:`~tvm_mpq.sensitivity.loss_ranges`). Runs the fp32 kernels of ``target``, which
    must be able to run here. Raises MpqError for an unknown observer, for a tensor that becomes NaN or infinite, and
    by "loss" where that has no gradient here.
    """
    if observer not in RANGES:
        raise MpqError(f"unknown observer {observer!r}: use {', '.join(RANGES)}")
    if observer == BY_LOSS:
        widest = calibrate(mod, dataset, "minmax", target, progress)
        differentiable = relax_loss(loss, probabilities=probabilities, labels=dataset.labels)
        return loss_ranges(mod, dataset, differentiable, widest, target, progress)
    inputs, _ = io_specs(mod)
    names = [operator.name for operator in operators(mod)]
    float_inputs = [spec for spec in inputs if spec.dtype == "float32"]
    input_observers = {s.name: make_observer(observer, tensor=f"input {s.name}") for s in float_inputs}
    # Integer results (indices, shapes) have no range that a grid could cover.
    output_observers: dict[str, Observer] = {
        operator.name: make_observer(observer, tensor=f"the output of operator {operator.name}")
        for operator in operators(mod)
        if str(mod[operator.global_var_name].ret_ty.dtype) == "float32"
    }
    run = _observed(mod, names, target)
    batch = inputs[0].shape[0] if inputs[0].shape else 1
    task = None if progress is None else progress.add_task("calibrating", total=-(-len(dataset) // batch))
    for arrays in dataset.batches(batch):
        for name, watched in input_observers.items():
            watched.update(arrays[name])
        outputs = run(*(tensor(arrays[spec.name]) for spec in inputs))
        for name, value in zip(names, outputs, strict=True):
            if name in output_observers:
                output_observers[name].update(value.numpy())
        if progress is not None and task is not None:
            progress.advance(task)
    return TensorRanges(
        {name: watched.range() for name, watched in input_observers.items()},
        {name: watched.range() for name, watched in output_observers.items()},
    )


def _observed(mod: IRModule, names: list[str], target: Target) -> Callable[..., list[Any]]:
    """The network in fp32 as a function that gives every operator's output."""
    plan = PrecisionPlan.uniform(names, FP32)
    pipeline = Pipeline(plan, TensorRanges({}, {}), target.instruction, observe=True)
    built = build(pipeline.lower(pipeline.annotate(mod)), target)
    main = relax.VirtualMachine(built.executable, cpu())["main"]
    threads = available_threads()
    return lambda *arguments: run_with_threads(threads, lambda: list(main(*arguments)))
