"""Rounding operators one after another, each by what the already rounded network hands to it.

An operator that is rounded by the inputs of the 8-bit network does not know the errors of those before it. Here its
inputs come from the network whose earlier operators are final, and its target is fp32's output, so that each makes up
for what the earlier ones did, once (GPTQ's own order; GPTAQ's target).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from rich.progress import Progress
from tvm import IRModule, cpu, relax
from tvm.runtime import Tensor, tensor

from tvm_mpq.build import build
from tvm_mpq.dataset import Dataset
from tvm_mpq.frontend import io_specs
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.quantization.covariance import Covariance, InputStatistics, Patches, Sampler
from tvm_mpq.quantization.second_order import SecondOrder, bias_change, round_second_order
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.sensitivity.input_statistics import Source, observed, sources
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.change_biases import ChangeBiases
from tvm_mpq.transform.lift_constants import LiftConstants
from tvm_mpq.transform.lower_operators import LowerOperators
from tvm_mpq.transform.pipeline import Pipeline

Array = npt.NDArray[Any]


def round_sequentially(
    mod: IRModule,
    plan: PrecisionPlan,
    ranges: TensorRanges,
    dataset: Dataset,
    target: Target,
    weights: Mapping[str, Array],
    grids: Mapping[str, QuantizedWeights],
    options: SecondOrder,
    progress: Progress | None = None,
) -> tuple[dict[str, QuantizedWeights], dict[str, npt.NDArray[np.float32]]]:
    """Integer weights for the operators of ``grids`` and bias changes for all with integer weights, by name.

    ``weights`` are float32 [O, C/groups, R, S] and ``grids`` integer weights of ``plan``'s precisions, both for each
    operator with integer weights. Those of 8 bits keep their codes, the others are rounded again by ``options``, of
    which ``correct`` is taken as set. Runs the network once for each operator with the kernels of ``target``, which
    must be able to run here. Keeps fp32's sampled input patches of all operators but depthwise ones in memory.
    """
    network = _Network(mod, plan, ranges, target)
    batches = _batches(mod, dataset)
    order = {name: source for name, source in sources(network.annotated).items() if source.grid is not None}
    meant = _reference(mod, plan, ranges, target, order, batches)
    options = replace(options, correct=True)
    rounded = dict(grids)
    changes: dict[str, npt.NDArray[np.float32]] = {}
    task = None if progress is None else progress.add_task("Rounding weights", total=len(order))
    for name, source in order.items():
        network.set(rounded, changes)
        statistics = _statistics(network, source, batches, meant[name])
        if rounded[name].bits < 8:
            # 8-bit codes obey the pair sums of the fast instructions, which rounding again would break.
            rounded[name] = round_second_order(weights[name], grids[name], statistics, options)
        changes[name] = bias_change(weights[name], rounded[name], statistics, correct=True)
        if progress is not None and task is not None:
            progress.advance(task)
    return rounded, changes


class _Network:
    """The observed network under a plan, compiled once; :meth:`set` gives it other weights and biases."""

    def __init__(self, mod: IRModule, plan: PrecisionPlan, ranges: TensorRanges, target: Target) -> None:
        self._instruction = target.instruction
        pipeline = Pipeline(plan, ranges, target.instruction, observe=True, any_codes=True)
        self.annotated = pipeline.annotate(mod)
        lowered = pipeline.lower(self.annotated, LiftConstants())
        self._main = relax.VirtualMachine(build(lowered, target).executable, cpu())["main"]
        self._constants: list[Tensor] = []

    def set(self, weights: Mapping[str, QuantizedWeights], changes: Mapping[str, Array]) -> None:
        lift = LiftConstants()
        # The constants are there as soon as the operators are kernels: no need to schedule those again.
        lower = LowerOperators(self._instruction, True, weights, True)
        tvm.transform.Sequential([ChangeBiases(changes), lower, lift])(self.annotated)
        self._constants = lift.values

    def __call__(self, arrays: list[Array]) -> list[Any]:
        given = [tensor(array) for array in arrays]
        return run_with_threads(available_threads(), lambda: list(self._main(*given, *self._constants)))


def _batches(mod: IRModule, dataset: Dataset) -> list[list[Array]]:
    inputs, _ = io_specs(mod)
    batch = inputs[0].shape[0]
    whole = dataset.take(max(1, len(dataset) // batch) * batch)
    return [[arrays[spec.name] for spec in inputs] for arrays in whole.batches(batch)]


def _reference(
    mod: IRModule,
    plan: PrecisionPlan,
    ranges: TensorRanges,
    target: Target,
    order: Mapping[str, Source],
    batches: list[list[Array]],
) -> dict[str, list[Patches]]:
    """fp32's patches of each operator, a batch an entry; of grouped convolutions only their mean, as one position."""
    run, _ = observed(mod, PrecisionPlan.uniform(plan, FP32), ranges, target)
    found: dict[str, list[Patches]] = {name: [] for name in order}
    for index, arrays in enumerate(batches):
        results = run(arrays)
        for name, source in order.items():
            seen = Sampler(source.window)(source.values(arrays, results, True), index)
            found[name].append(seen if source.window.groups == 1 else seen.mean(axis=2, keepdims=True))
    return found


def _statistics(
    network: _Network, source: Source, batches: list[list[Array]], meant: list[Patches]
) -> InputStatistics:
    total, sample = Covariance(), Sampler(source.window)
    for index, (arrays, reference) in enumerate(zip(batches, meant, strict=True)):
        seen = sample(source.values(arrays, network(arrays), False), index)
        if source.window.groups > 1:
            # Patches of depthwise convolutions are many times their input: only the error of the mean is known.
            reference = seen + (reference - seen.mean(axis=2, keepdims=True))
        total.update(seen, reference)
    return total.statistics()
