"""The harness: latency, storage and loss of a package itself, with its fp32 baseline measured beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256
from tvm_mpq.loss import Loss, get_loss, gives_probabilities
from tvm_mpq.runtime.evaluate import SampleLosses, batch_size, evaluate
from tvm_mpq.runtime.machine import Machine, ThisMachine
from tvm_mpq.runtime.metadata import Metadata
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.result import (
    BaselineResult,
    Environment,
    Latency,
    LossResult,
    Result,
    StorageBytes,
    Tiles,
)
from tvm_mpq.runtime.session import Session, check_repeat
from tvm_mpq.statistics import Interval, paired_bootstrap
from tvm_mpq.versions import versions

_BLOCKS = 10
_WARMUP = 2


def benchmark(
    package: Package,
    data: Dataset,
    *,
    baseline: Package | None = None,
    baseline_reason: str = "none was given",
    loss: str = "cross-entropy",
    probabilities: bool = False,
    threads: int | None = 1,
    repeat: int = 100,
    seed: int = 0,
    profiled: bool = False,
    progress: Progress | None = None,
    machine: Machine | None = None,
) -> Result:
    """Measure ``package`` on ``data`` and, in turns with it, the fp32 package ``baseline``.

    ``loss`` is a name for :func:`tvm_mpq.loss.get_loss`; ``kl`` compares with the baseline's outputs. Outputs are taken
    for ``probabilities`` also where the network ends in a softmax or sigmoid.
    Latency is of ``repeat`` runs each of the first batch of ``data`` with ``threads`` threads (None: all).
    ``seed`` is that of the bootstrap. ``profiled``: also time every kernel call of the package (runtime.profile).
    Without a baseline, ``baseline_reason`` says why in the result. ``machine`` is where they run, this one by default.
    Raises MpqError for packages and data that do not fit each other or this machine.
    """
    where = machine or ThisMachine()
    threads = where.threads(threads)
    check_repeat(repeat)
    if baseline is not None:
        _check_pair(package.metadata, baseline.metadata)
    probabilities = probabilities or gives_probabilities(package.metadata.operators)
    measure = get_loss(loss, probabilities=probabilities)
    if measure.needs_reference and baseline is None:
        raise MpqError(f"--loss {loss} compares with the fp32 package, which is not there: {baseline_reason}")
    session = where.session(package, threads)
    fp32 = None if baseline is None else where.session(baseline, threads)
    ours, theirs = evaluate(session, fp32, data, measure, progress)

    inputs = data.batch(np.minimum(np.arange(batch_size(package.metadata)), len(data) - 1))
    timed = [session] if fp32 is None else [session, fp32]
    seconds = time_in_turns(timed, inputs, repeat, progress)

    change = None if theirs is None else paired_bootstrap(ours.losses - theirs.losses, seed=seed)
    beside = None
    if baseline is not None and theirs is not None:
        beside = BaselineResult(
            Latency.of(seconds[1], threads),
            _storage(baseline, threads, where),
            _loss_result(measure, theirs, None),
        )
    found = None
    if profiled:
        from tvm_mpq.runtime.profile import profile  # needs the compiler, for the peaks' loops

        found = profile(session, inputs, repeat)
    return Result(
        latency_ms=Latency.of(seconds[0], threads),
        storage_bytes=_storage(package, threads, where),
        loss=_loss_result(measure, ours, change),
        baseline=beside,
        baseline_reason=None if beside is not None else baseline_reason,
        operators=package.metadata.operators,
        tiles=Tiles.of(package.metadata.calls),
        environment=_environment(package, baseline, data, seed, where),
        profile=found,
    )


def find_baseline(
    package: Package, path: str | Path, given: str | Path | None = None
) -> tuple[Package | None, str]:
    """The fp32 package to compare the package file ``path`` with, or None and the reason why there is none.

    It is the file ``given``, or the one that was written beside ``path``. Raises MpqError when ``given``
    cannot be loaded, or when the file beside is another one than was compiled with the package.
    """
    if given is not None:
        return Package.load(given), ""
    recorded = package.metadata.baseline
    if recorded is None:
        return None, "the package was compiled without one; give one with --baseline FILE"
    if recorded.file != Path(recorded.file).name:
        raise MpqError(f"{path} names the baseline {recorded.file!r}, which is not a file beside it")
    beside = Path(path).parent / recorded.file
    if not beside.exists():
        return None, f"{recorded.file} is not beside the package; give it with --baseline FILE"
    baseline = Package.load(beside)
    if sha256(baseline.to_bytes()) != recorded.sha256:
        raise MpqError(
            f"{beside} is not the fp32 package that was compiled with {path}; "
            "compile again, or say with --baseline FILE that you want it"
        )
    return baseline, ""


def time_in_turns(
    sessions: Sequence[Session],
    inputs: Mapping[str, npt.NDArray[Any]],
    repeat: int,
    progress: Progress | None = None,
) -> list[npt.NDArray[np.float64]]:
    """Seconds of ``repeat`` runs of each session, float64 [repeat], measured in alternating blocks.

    Interleaving gives every session the same share of whatever else the machine does and of its clock's
    ups and downs; the order turns around from block to block, so that none always follows the other.
    """
    check_repeat(repeat)
    blocks = np.array_split(np.arange(repeat), min(_BLOCKS, repeat))
    parts: list[list[npt.NDArray[np.float64]]] = [[] for _ in sessions]
    task = None if progress is None else progress.add_task("Timing", total=len(blocks))
    for number, block in enumerate(blocks):
        order = range(len(sessions)) if number % 2 == 0 else reversed(range(len(sessions)))
        for i in order:
            parts[i].append(sessions[i].time(inputs, len(block), _WARMUP))
        if progress is not None and task is not None:
            progress.advance(task)
    return [np.concatenate(part) for part in parts]


def _check_pair(ours: Metadata, fp32: Metadata) -> None:
    if ours.inputs != fp32.inputs or [s.shape for s in ours.outputs] != [s.shape for s in fp32.outputs]:
        raise MpqError("the baseline is of another network: its inputs or outputs differ from the package's")
    if ours.hashes.model != fp32.hashes.model:
        raise MpqError("the baseline was compiled from another ONNX file than the package")


def _storage(package: Package, threads: int, where: Machine) -> StorageBytes:
    planned = package.metadata.storage
    return StorageBytes(
        len(package.to_bytes()), planned.weights, planned.weights_resident, where.resident(package, threads)
    )


def _loss_result(loss: Loss, found: SampleLosses, change: Interval | None) -> LossResult:
    bounded = change is not None and math.isfinite(change.low) and math.isfinite(change.high)
    return LossResult(
        name=loss.name,
        mean=float(found.losses.mean()),
        accuracy=found.accuracy,
        samples=len(found.losses),
        delta=None if change is None else change.mean,
        ci95=(change.low, change.high) if change is not None and bounded else None,
    )


def _environment(
    package: Package, baseline: Package | None, data: Dataset, seed: int, where: Machine
) -> Environment:
    recorded = package.metadata.hashes
    return Environment(
        cpu=where.cpu,
        features=tuple(sorted(where.features)),
        versions=versions(),
        seed=seed,
        hashes={
            "package": sha256(package.to_bytes()),
            "baseline": None if baseline is None else sha256(baseline.to_bytes()),
            "data": data.content_hash(),
            "model": recorded.model,
            "calibration": recorded.calibration,
            "library": recorded.library,
            "plan": recorded.plan,
        },
    )
