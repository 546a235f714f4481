"""A small package made with TVM alone, for tests of what happens to packages once they are built."""

from __future__ import annotations

import functools

import numpy as np

from tvm_mpq.linker import link_executable
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.runtime.metadata import OperatorRecord, Storage
from tvm_mpq.runtime.package import Package
from tvm_mpq.target import host_target
from tvm_mpq.tensor_spec import TensorSpec

CLASSES, FEATURES, BATCH = 5, 12, 2


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(FEATURES, CLASSES)).astype(np.float32)


@functools.cache
def tiny_package(seed: int = 0, work: int = 1) -> Package:
    """exp(x · W) / work, ``work`` times added up: a network [2, 12] → [2, 5] whose slowness can be chosen."""
    from tvm import relax

    x = relax.Var("x", relax.TensorType((BATCH, FEATURES), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(x, relax.const(weights(seed))))
            y = builder.emit(relax.op.exp(y))
            total = y
            for _ in range(work - 1):
                total = builder.emit(relax.op.add(total, y))
            if work > 1:
                total = builder.emit(relax.op.divide(total, relax.const(float(work), "float32")))
            out = builder.emit_output(total)
        builder.emit_func_output(out)
    target = host_target()
    executable = relax.build(builder.get(), target.tvm_target())
    size = weights(seed).nbytes
    return Package.create(
        name="tiny",
        inputs=[TensorSpec("x", (BATCH, FEATURES), "float32")],
        outputs=[TensorSpec("y", (BATCH, CLASSES), "float32")],
        target=target,
        plan=PrecisionPlan.uniform(["fc"], FP32),
        library=link_executable(executable),
        model_sha256="0" * 64,
        operators=[OperatorRecord("fc", "matmul", "fp32", "fp32", "fp32", "")],
        storage=Storage(size, size, size),
    )


def expected(x: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.exp(x @ weights(seed))
