"""The loss of many plans of one network, each in the very arithmetic of the package it would become."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm_ffi
from tvm import IRModule, cpu, relax
from tvm.runtime import tensor

from tvm_mpq.build import build
from tvm_mpq.dataset import Dataset
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.loss import Loss, top1
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.runtime.evaluate import SampleLosses
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.target import Target, host_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.change_biases import Biases
from tvm_mpq.transform.lift_constants import LiftConstants
from tvm_mpq.transform.pipeline import Pipeline

_Run = Callable[..., Any]
Outputs = list[list[Any]]

# Decoding images takes as long as running them: so many bytes of decoded samples are kept.
_KEPT_BYTES = 1 << 29


class PlanEvaluator:
    """Evaluates plans of the canonical ``mod`` on the samples of ``data``.

    Kernels are built for 8-bit codes of any kind, whatever bits a plan gives an operator: the integers are the same,
    and one build, whose weights are arguments, serves every plan with the same operators in float. The sums are exact,
    so these are the bytes that the plan's package computes. Outputs of the network in fp32 are the reference of losses
    that need one, and of the ``divergence`` where there is one.
    """

    def __init__(
        self,
        mod: IRModule,
        ranges: TensorRanges,
        data: Dataset,
        loss: Loss,
        target: Target | None = None,
        threads: int | None = None,
        divergence: Loss | None = None,
    ) -> None:
        self._divergence = divergence
        self._mod, self._ranges, self._data, self._loss = mod, ranges, data, loss
        self._target = target or host_target()
        self._threads = threads or available_threads()
        self._inputs = io_specs(mod)[0]
        self._built: dict[int, _Run] = {}
        self._reference: Outputs | None = None
        self._batches: dict[int, dict[str, Any]] = {}

    def of(
        self, mod: IRModule, ranges: TensorRanges | None = None, divergence: Loss | None = None
    ) -> PlanEvaluator:
        """An evaluator of ``mod``, a network of the same inputs and operators, that shares samples and executables.

        ``ranges`` and ``divergence`` take the place of this one's where they are given.
        """
        other = copy.copy(self)
        other._mod, other._reference = mod, None
        other._ranges = self._ranges if ranges is None else ranges
        other._divergence = self._divergence if divergence is None else divergence
        return other

    def on(self, data: Dataset) -> PlanEvaluator:
        """An evaluator of the same network on other samples, that shares executables; without a divergence."""
        other = copy.copy(self)
        other._data, other._batches, other._reference, other._divergence = data, {}, None, None
        return other

    @property
    def data(self) -> Dataset:
        """The samples."""
        return self._data

    @property
    def builds(self) -> int:
        """How many executables were built."""
        return len(self._built)

    def losses(
        self,
        plan: PrecisionPlan,
        weights: Mapping[str, QuantizedWeights] | None = None,
        biases: Biases | None = None,
    ) -> SampleLosses:
        """The loss and correctness of every sample under ``plan``, with ``weights`` in place of rounding to nearest.

        ``biases`` are added to those of the operators they name. Raises MpqError for a loss that does not fit the
        network and the data.
        """
        wanted = self._loss.needs_reference or self._divergence is not None
        if wanted and self._reference is None:
            names = [operator.name for operator in operators(self._mod)]
            self._reference = self.outputs(PrecisionPlan.uniform(names, FP32))
        return self.of_outputs(self.outputs(plan, weights, biases))

    def outputs(
        self,
        plan: PrecisionPlan,
        weights: Mapping[str, QuantizedWeights] | None = None,
        biases: Biases | None = None,
    ) -> Outputs:
        """The network's outputs under ``plan``: for each batch of samples a list of arrays.

        ``weights`` and ``biases`` as in :meth:`losses`.
        """
        run, constants = self._prepared(plan, weights, biases)
        batch = self._inputs[0].shape[0] if self._inputs[0].shape else 1

        def all_batches() -> Outputs:
            found = []
            for start in range(0, len(self._data), batch):
                count = min(batch, len(self._data) - start)
                arrays = self._batch(start, batch)
                result = run(*(tensor(arrays[spec.name]) for spec in self._inputs), *constants)
                results = [result] if hasattr(result, "numpy") else list(result)
                found.append([value.numpy()[:count] for value in results])
            return found

        return run_with_threads(self._threads, all_batches)

    def of_outputs(self, outputs: Outputs, reference: Outputs | None = None) -> SampleLosses:
        """The losses of outputs as :meth:`outputs` gives them; ``reference`` takes the place of fp32's outputs."""
        against = self._reference if reference is None else reference
        losses, correct, divergence = [], [], []
        start = 0
        for index, arrays in enumerate(outputs):
            count = len(arrays[0])
            labels = self._data.labels
            some = None if labels is None else labels[start : start + count]
            exact = None if against is None else against[index]
            losses.append(self._loss.per_sample(arrays, some, exact))
            if self._divergence is not None:
                assert exact is not None
                divergence.append(self._divergence.per_sample(arrays[:1], None, exact[:1]))
            if self._loss.classification and some is not None:
                correct.append(top1(arrays, some))
            start += count
        return SampleLosses(np.concatenate(losses), _joined(correct), _joined(divergence))

    def _batch(self, start: int, size: int) -> dict[str, Any]:
        """``size`` samples from ``start`` on; the last batch is filled up with the last sample again."""
        if start in self._batches:
            return self._batches[start]
        arrays = self._data.batch(np.minimum(np.arange(start, start + size), len(self._data) - 1))
        if sum(array.nbytes for array in arrays.values()) * (len(self._batches) + 1) <= _KEPT_BYTES:
            self._batches[start] = arrays
        return arrays

    def _prepared(
        self, plan: PrecisionPlan, weights: Mapping[str, QuantizedWeights] | None, biases: Biases | None
    ) -> tuple[_Run, list[Any]]:
        pipeline = Pipeline(
            plan, self._ranges, self._target.instruction, weights=weights, biases=biases, any_codes=True
        )
        lift = LiftConstants()
        lowered = pipeline.lower(pipeline.annotate(self._mod), lift)
        key = tvm_ffi.structural_hash(lowered, map_free_vars=True)
        if key not in self._built:
            executable = build(lowered, self._target).executable
            self._built[key] = relax.VirtualMachine(executable, cpu())["main"]
        return self._built[key], lift.values


def _joined(parts: list[Any]) -> Any:
    return np.concatenate(parts) if parts else None
