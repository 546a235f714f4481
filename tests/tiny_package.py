"""A small package made with TVM alone, for tests of what happens to packages once they are built."""

from __future__ import annotations

import functools
from typing import Any

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
def tiny_package(seed: int = 0, work: int = 1, ballast: int = 0) -> Package:
    """exp(x · W), added up and divided by ``work``: a network [2, 12] → [2, 5] as slow as you like.

    ``ballast`` adds the maximum of a constant of that many bytes, which is 0.
    """
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
            if ballast:
                zeros = relax.const(np.zeros(ballast // 4, np.float32))
                total = builder.emit(relax.op.add(total, relax.op.max(zeros)))
            out = builder.emit_output(total)
        builder.emit_func_output(out)
    return _packed(builder.get(), (BATCH, FEATURES), (BATCH, CLASSES), weights(seed).nbytes)


@functools.cache
def parallel_package(elements: int = 1 << 20) -> Package:
    """exp(sqrt(exp(x))) in a loop that TVM's threads share: a network [n] → [n]."""
    from tvm import relax, te
    from tvm.s_tir import Schedule

    a = te.placeholder((elements,), name="a")
    b = te.compute((elements,), lambda i: te.exp(te.sqrt(te.exp(a[i]))), name="b")
    schedule = Schedule(te.create_prim_func([a, b]))
    (loop,) = schedule.get_loops(schedule.get_sblock("b"))
    outer, _ = schedule.split(loop, [64, None])
    schedule.parallel(outer)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((elements,), "float32"))
    with builder.function("main", [x]):
        kernel = builder.add_func(schedule.mod["main"].with_attr("global_symbol", "kernel"), "kernel")
        with builder.dataflow():
            out = builder.emit_output(relax.call_tir(kernel, [x], relax.TensorType((elements,), "float32")))
        builder.emit_func_output(out)
    return _packed(builder.get(), (elements,), (elements,), 0)


def _packed(module: Any, inputs: tuple[int, ...], outputs: tuple[int, ...], size: int) -> Package:
    from tvm import relax

    target = host_target()
    executable = relax.build(module, target.tvm_target())
    return Package.create(
        name="tiny",
        inputs=[TensorSpec("x", inputs, "float32")],
        outputs=[TensorSpec("y", outputs, "float32")],
        target=target,
        plan=PrecisionPlan.uniform(["fc"], FP32),
        library=link_executable(executable),
        model_sha256="0" * 64,
        operators=[OperatorRecord("fc", "matmul", "fp32", "fp32", "fp32", "")],
        storage=Storage(size, size, size, size),
    )


def expected(x: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.exp(x @ weights(seed))
