"""The integer weights of every operator at every candidate precision, rounded once for the whole search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rich.progress import Progress
from threadpoolctl import threadpool_limits
from tvm import IRModule

from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import W8A8, Precision
from tvm_mpq.quantization.covariance import InputStatistics
from tvm_mpq.quantization.loss_step import LossStep
from tvm_mpq.quantization.rounding import round_to_nearest
from tvm_mpq.quantization.second_order import bias_change, round_second_order
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.runtime.threads import available_threads
from tvm_mpq.sensitivity.input_statistics import input_statistics
from tvm_mpq.statistics import Interval
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.operator_body import read_body

Weight = npt.NDArray[np.float32]
Key = tuple[str, str]

LED_BY_LOSS = "loss-aware"
METHODS = ("nearest", "second-order", LED_BY_LOSS)

NO_STEP = "no step down the loss's gradient lowers it for sure on other samples"
"""What is said where rounding led by the loss leads nowhere."""

ROUNDED_KINDS = frozenset({"conv2d", "depthwise_conv2d", "matmul"})
"""Kinds whose weights can be rounded by the statistics of their inputs."""


@dataclass(frozen=True)
class StepLength:
    """How far rounding led by the loss goes: ``part`` of the step, and the ``change`` of fp32's loss that it makes.

    Of the lengths tried it lowers the loss most surely, on samples that gave no direction. It is ``taken`` where the
    interval stays below zero.
    """

    part: float
    change: Interval

    @property
    def taken(self) -> bool:
        """Whether weights are rounded to where it leads."""
        return self.change.high < 0.0


@dataclass(frozen=True)
class LedByLoss:
    """``steps`` of operators, by name: none where no ``length`` lowers the loss for sure."""

    steps: Mapping[str, LossStep]
    length: StepLength


@dataclass(frozen=True)
class Candidates:
    """``weights`` and changes of ``biases`` (float32 [O]) by operator name and precision name.

    Operators that are not here have no weights to round, or are rounded to nearest. ``step`` is there where the loss
    led the rounding.
    """

    weights: Mapping[Key, QuantizedWeights] = field(default_factory=dict)
    biases: Mapping[Key, npt.NDArray[np.float32]] = field(default_factory=dict)
    step: StepLength | None = None

    def of(
        self, plan: PrecisionPlan
    ) -> tuple[dict[str, QuantizedWeights], dict[str, npt.NDArray[np.float32]]]:
        """The weights and biases of ``plan``, by operator name."""
        keys = [(name, str(precision)) for name, precision in plan.operators.items()]
        weights = {key[0]: self.weights[key] for key in keys if key in self.weights}
        return weights, {key[0]: self.biases[key] for key in keys if key in self.biases}


def operator_weights(mod: IRModule) -> dict[str, Weight]:
    """The weights of operators of :data:`ROUNDED_KINDS`, [O, C/groups, R, S], by name."""
    found = {}
    for operator in operators(mod):
        if operator.kind in ROUNDED_KINDS:
            weight = read_body(mod[operator.global_var_name]).weight
            assert weight is not None
            turned = weight.T[:, :, None, None] if operator.kind == "matmul" else weight
            found[operator.name] = np.ascontiguousarray(turned, np.float32)
    return found


@dataclass(frozen=True)
class Rounding:
    """How weights become integers: by one of :data:`METHODS`.

    "second-order" is :mod:`~tvm_mpq.quantization.second_order`, "loss-aware" the same of the weights after
    :mod:`~tvm_mpq.search.loss_led`. ``correct_biases`` adds the bias that keeps the mean of the operator's output.
    Raises MpqError for another method.
    """

    method: str = "second-order"
    correct_biases: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise MpqError(f"unknown rounding {self.method!r}: use {', '.join(METHODS)}")


def candidate_keys(mod: IRModule, precisions: Sequence[Precision]) -> list[Key]:
    """Every (operator, precision) whose weights are rounded to integers; depthwise ones have no groups."""
    kinds = {operator.name: operator.kind for operator in operators(mod)}
    return [
        (name, str(precision))
        for name, kind in kinds.items()
        for precision in precisions
        if kind in ROUNDED_KINDS
        and not precision.is_float
        and not (precision.group and kind == "depthwise_conv2d")
    ]


def candidate_statistics(
    mod: IRModule,
    keys: Sequence[Key],
    ranges: TensorRanges,
    dataset: Dataset,
    target: Target,
    progress: Progress | None = None,
) -> dict[str, InputStatistics]:
    """The moments of the inputs of the operators that ``keys`` name in the w8a8 network, over ``dataset``."""
    if not keys:
        return {}
    return input_statistics(
        mod,
        PrecisionPlan.uniform([operator.name for operator in operators(mod)], W8A8),
        ranges,
        dataset,
        target,
        only=dict.fromkeys(name for name, _ in keys),
        progress=progress,
        with_reference=False,
    )


def round_candidates(
    mod: IRModule,
    keys: Sequence[Key],
    statistics: Mapping[str, InputStatistics],
    options: Rounding | None = None,
    progress: Progress | None = None,
    led: LedByLoss | None = None,
) -> Candidates:
    """Round the weights of the canonical ``mod`` to all ``keys``, by ``statistics`` of their inputs.

    The steps of ``led`` are added to what is rounded and to biases.
    Weights of 8 bits are always rounded to nearest: with 8-bit activations their codes obey the sums of the fast
    instructions (:mod:`~tvm_mpq.quantization.int16_sums`), and there is little to gain.
    """
    kinds = {operator.name: operator.kind for operator in operators(mod)}
    chosen = options or Rounding()
    weights = operator_weights(mod)
    task = None if progress is None else progress.add_task("rounding weights", total=len(keys))

    def candidate(key: Key) -> tuple[QuantizedWeights, npt.NDArray[np.float32]]:
        name, text = key
        precision = Precision.parse(text)
        paired = precision.integer_activations and kinds[name] != "depthwise_conv2d"
        weight, step = weights[name], None if led is None else led.steps.get(name)
        if step is not None:
            weight = (weight + step.weights.reshape(weight.shape)).astype(np.float32)
        rounded = round_to_nearest(weight, precision.weight_bits, precision.group, name, paired)
        if chosen.method != "nearest" and precision.weight_bits < 8:
            rounded = round_second_order(weight, rounded, statistics[name])
        change = np.zeros(len(rounded.codes), np.float32)
        if chosen.correct_biases:
            change = bias_change(weight, rounded, statistics[name])
        if step is not None:
            change += step.bias.astype(np.float32)
        if progress is not None and task is not None:
            progress.advance(task)
        return rounded, change

    # Operators side by side, each with one thread: BLAS's own threads would wait for each other.
    with threadpool_limits(1), ThreadPoolExecutor(available_threads()) as pool:
        found = dict(zip(keys, pool.map(candidate, keys), strict=True))
    return Candidates(
        {k: w for k, (w, _) in found.items()},
        {k: b for k, (_, b) in found.items()},
        None if led is None else led.length,
    )
