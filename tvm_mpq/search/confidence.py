"""The scale of a network's output, chosen by the loss: temperature scaling (Guo et al. 2017), folded into weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize
from tvm import IRModule

from tvm_mpq.frontend import operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.statistics import Interval, paired_bootstrap
from tvm_mpq.transform.scale_operators import is_linear_output, output_operator, scale_operators

Losses = np.typing.NDArray[np.float64]

_WIDEST = 4.0
_CLOSE = 0.02


@dataclass(frozen=True)
class OutputScale:
    """``factor`` of the output of ``operator``, and the ``change`` of fp32's loss that it made on the samples."""

    operator: str
    factor: float
    change: Interval

    @property
    def factors(self) -> dict[str, float]:
        """What :class:`~tvm_mpq.transform.scale_operators.ScaleOperators` takes."""
        return {self.operator: self.factor}


def fit_output_scale(mod: IRModule, evaluator: PlanEvaluator) -> OutputScale | None:
    """The factor from 1/4 to 4 of the least loss of ``mod`` in fp32, to 2 %, on the samples of ``evaluator``.

    None where the output comes from no operator that can be scaled, and where the loss is not lower for sure (the 95 %
    interval of the paired bootstrap reaches zero).
    """
    name = output_operator(mod)
    if name is None:
        return None
    plan = PrecisionPlan.uniform([operator.name for operator in operators(mod)], FP32)
    outputs = evaluator.of(mod).outputs(plan)
    base = evaluator.of_outputs(outputs).losses
    linear = is_linear_output(mod)

    def losses(factor: float) -> Losses:
        if linear:
            first = [[np.float32(factor) * batch[0], *batch[1:]] for batch in outputs]
            return evaluator.of_outputs(first).losses
        return evaluator.of(scale_operators(mod, {name: factor})).losses(plan).losses

    def change(logarithm: float) -> float:
        return float((losses(math.exp(logarithm)) - base).mean())

    span = math.log(_WIDEST)
    found = optimize.minimize_scalar(
        change, bounds=(-span, span), method="bounded", options={"xatol": _CLOSE}
    )
    factor = round(math.exp(float(found.x)), 3)
    interval = paired_bootstrap(losses(factor) - base)
    return OutputScale(name, factor, interval) if interval.high < 0.0 else None
