"""Tuning in one call: a network, a plan and a target in, records in the logs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from tvm_mpq.device.machine import DeviceMachine
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.runtime.machine import ThisMachine
from tvm_mpq.target import Target, load_target, missing_features
from tvm_mpq.tuning.log import log_folder
from tvm_mpq.tuning.remote_runner import RemoteRunner
from tvm_mpq.tuning.result import TuningResult
from tvm_mpq.tuning.runner import LocalRunner, Runner
from tvm_mpq.tuning.tuner import Tuner
from tvm_mpq.tuning.workloads import workloads


def tune_model(
    model: str | Path,
    *,
    logs: str | Path,
    target: str | Target = "host",
    plan: PrecisionPlan | None = None,
    precision: str = "w8a8",
    trials: int = 1500,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    time_limit: float | None = None,
    baseline: bool = True,
    seed: int = 0,
    device: DeviceMachine | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> TuningResult:
    """Tune the kernels of an ONNX file under ``plan`` (or all at ``precision``), and with ``baseline`` in fp32.

    Records are read from and added to the folder ``logs``. ``trials`` tiles are measured for the plan and as many for
    the baseline, with ``threads`` threads, here or on ``device`` and all others of its key at the tracker; no batch
    starts after ``time_limit`` seconds. Raises MpqError for everything that a user can mend.
    """
    machine = target if isinstance(target, Target) else load_target(target)
    where = device or ThisMachine()
    threads = where.threads(threads)
    if trials < 1:
        raise MpqError(f"cannot tune with {trials} trials: give --trials of at least 1")
    which = "this machine" if device is None else "the device"
    measured, cpu = machine, where.cpu
    if machine.gpu is not None:
        gpu = where.gpu
        if gpu is None:
            raise MpqError(
                f"no NVIDIA GPU in {which}, or no driver (libcuda.so.1): kernels of the target {machine.name} are "
                "measured on one, here or with --rpc where 'tvm-mpq rpc-server' runs"
            )
        # Threads of the processor make no difference, and code for other GPUs need not be made.
        threads, cpu = 1, gpu.name
        measured = replace(
            machine, gpu=replace(machine.gpu, architectures=(gpu.code(machine.gpu.architectures),))
        )
    missing = missing_features(machine, where.features)
    if missing:
        raise MpqError(
            f"{which} cannot measure code for the target {machine.name}: it lacks {', '.join(missing)}"
        )
    mod = import_onnx(model, input_shapes)
    names = [operator.name for operator in operators(mod)]
    chosen = PrecisionPlan.uniform(names, Precision.parse(precision)) if plan is None else plan
    chosen.check(names)
    machine.require(chosen.operators.values())
    precisions = {str(value) for value in chosen.operators.values()}
    label = precisions.pop() if len(precisions) == 1 else "plan"
    plans = {label: workloads(mod, chosen, machine)}
    if baseline:
        plans["fp32"] = workloads(mod, PrecisionPlan.uniform(names, FP32), machine)
    runner: Runner
    if device is None:
        runner = LocalRunner(measured, threads, seed, cpu)
    else:
        runner = RemoteRunner(measured, threads, device.place, cpu, seed, device.seconds, say)
        device.close()  # The runner asks for devices itself.
    with runner:
        tuner = Tuner(runner, log_folder(Path(logs), machine), threads, seed, time_limit, say, progress)
        return tuner.tune(plans, trials)
