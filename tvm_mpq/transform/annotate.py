"""AnnotatePrecision: write on every operator the precision it was asked to have and the one it gets."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax

from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP16, FP32, Precision
from tvm_mpq.quantization.half import holds
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.operator_body import read_body

INTEGER_KINDS = frozenset(
    {
        "conv2d",
        "depthwise_conv2d",
        "matmul",
        "conv2d_transpose",
        "add",
        "broadcast_add",
        "sub",
        "mul",
        "activation",
        "pointwise",
        "sigmoid",
        "max_pool2d",
        "avg_pool2d",
        "global_avg_pool",
        "resize_linear",
        "concat",
    }
)
"""Kinds with an integer kernel."""
WEIGHTED_KINDS = frozenset({"conv2d", "depthwise_conv2d", "conv2d_transpose", "matmul"})
MOVING_KINDS = frozenset({"reshape", "permute_dims", "slice", "resize_nearest"})
"""Kinds that only move elements: they run in whatever their input is stored in."""


@tvm.transform.module_pass(opt_level=0, name="AnnotatePrecision")
class AnnotatePrecision:
    """Rewrite ``op_i {}`` → ``op_i {mpq.asked = plan[i], mpq.precision = …, mpq.reason = …}``.

    Bodies are untouched. An operator of a kind without an integer kernel is executed in fp32 and says why.
    An operator without weights computes on 8-bit activations whatever weight bits are asked: it is executed as asked.
    Where activations stay float it computes in fp32, but for products of two activations on a GPU (``gpu``), which it
    multiplies as half floats when asked for ``fp16`` or ``w…a16``.
    """

    def __init__(self, plan: PrecisionPlan, gpu: bool = False) -> None:
        self.plan, self.gpu = plan, gpu

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass; fails with MpqError's message when the plan and the module's operators differ."""
        names = [attr.text(function, attr.OPERATOR) for _, function, _ in attr.calls(mod)]
        self.plan.check(names)
        result = mod.clone()
        for variable, function in mod.functions_items():
            if isinstance(function, relax.Function) and attr.text(function, attr.OPERATOR):
                result.update_func(variable, self._annotate(function))
        return result

    def _annotate(self, function: relax.Function) -> relax.Function:
        kind = attr.text(function, attr.KIND)
        asked = self.plan[attr.text(function, attr.OPERATOR)]
        executed, reason = asked, ""
        if asked.integer_activations:
            reason = _why_not_in_8_bits(kind)
            executed = FP32 if reason else asked
        elif self.gpu and kind == "batch_matmul" and asked.half_activations:
            executed, reason = FP16, "" if asked == FP16 else f"{kind} has no weights"
        elif asked != FP32:
            reason = _why_not_in_float(kind, function, asked)
            executed = FP32 if reason else asked
        annotations = {attr.ASKED: str(asked), attr.PRECISION: str(executed), attr.REASON: reason}
        return function.with_attrs(annotations)


def _why_not_in_float(kind: str, function: relax.Function, asked: Precision) -> str:
    """Why an operator asked to keep float activations and store smaller weights cannot; empty where it can."""
    if kind not in WEIGHTED_KINDS:
        return f"{kind} has no weights"
    if asked.floating is not None:
        weight = read_body(function).weight
        assert weight is not None
        if not holds(asked.floating, weight):
            return f"{asked} holds no weights as large as {float(np.abs(weight).max()):g}"
    return ""


def _why_not_in_8_bits(kind: str) -> str:
    """Why an operator asked to compute on 8-bit activations cannot; empty where it can."""
    return "" if kind in MOVING_KINDS | INTEGER_KINDS else f"{kind} has no integer kernel"
