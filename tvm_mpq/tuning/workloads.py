"""Which kernels a network calls, and how often: what there is to tune."""

from __future__ import annotations

from collections import Counter

import tvm
from tvm import IRModule, relax

from tvm_mpq.frontend import operators
from tvm_mpq.kernels.spec import ATTRIBUTE, KernelSpec
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.target import Target
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.lower_operators import LowerOperators
from tvm_mpq.transform.pipeline import Pipeline


def workloads(mod: IRModule, plan: PrecisionPlan, target: Target) -> Counter[KernelSpec]:
    """The key of each templated kernel of the canonical ``mod`` under ``plan``, and how many operators call it.

    Nothing is calibrated: kernels depend on shapes and precisions, and scales are arguments.
    """
    span = (-1.0, 1.0)
    ranges = TensorRanges(
        dict.fromkeys(attr.names(mod["main"], attr.INPUTS), span),
        dict.fromkeys((operator.name for operator in operators(mod)), span),
    )
    annotated = Pipeline(plan, ranges, target.instruction).annotate(mod)
    lowered = tvm.transform.Sequential([LowerOperators(target.instruction)])(annotated)
    found: Counter[KernelSpec] = Counter()
    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and getattr(call.op, "name", "") == "relax.call_tir":
                attributes = lowered[call.args[0]].attrs
                if attributes is not None and ATTRIBUTE in attributes:
                    found[KernelSpec.from_json(str(attributes[ATTRIBUTE])).key] += 1
    return found
