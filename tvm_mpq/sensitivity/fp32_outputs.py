"""The fp32 network's outputs, that losses without labels compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvm_mpq.build import build
from tvm_mpq.dataset import Dataset
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline


def fp32_outputs(mod: tvm.IRModule, data: Dataset, target: Target) -> list[npt.NDArray[Any]]:
    """Each output of the canonical ``mod`` for all samples: a list of arrays [samples, …]."""
    inputs, outputs = io_specs(mod)
    plan = PrecisionPlan.uniform([operator.name for operator in operators(mod)], FP32)
    pipeline = Pipeline(plan, TensorRanges({}, {}), target.instruction)
    executable = build(pipeline.lower(pipeline.annotate(mod)), target).executable
    main = relax.VirtualMachine(executable, tvm.cpu())["main"]
    found: list[list[npt.NDArray[Any]]] = [[] for _ in outputs]
    for arrays in data.batches(inputs[0].shape[0]):
        tensors = [tvm.runtime.tensor(arrays[spec.name]) for spec in inputs]
        results = run_with_threads(available_threads(), lambda given=tensors: main(*given))  # type: ignore[misc]
        for kept, result in zip(found, [results] if len(outputs) == 1 else results, strict=True):
            kept.append(result.numpy())
    return [np.concatenate(parts)[: len(data)] for parts in found]
