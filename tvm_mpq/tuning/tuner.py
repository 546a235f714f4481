"""Tune the kernels of a network: what takes most of its time first, the fp32 baseline with the same budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress, TaskID

from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.tuning.log import TuningLog, append, log_file
from tvm_mpq.tuning.model import CostModel
from tvm_mpq.tuning.record import TuningRecord
from tvm_mpq.tuning.result import TunedKernel, TuningResult
from tvm_mpq.tuning.runner import Runner
from tvm_mpq.tuning.search import BATCH, Search
from tvm_mpq.versions import versions

_DEFAULT_ROUNDS = 3
_ENOUGH = 0.5
"""A key whose finished search was given this share of the trials that it would be given now is not searched again."""


@dataclass
class Tuner:
    """Tunes kernels on one runner into one folder of logs.

    ``limit``: no batch starts after so many seconds. ``say`` prints a line, ``progress`` shows the trials done.
    """

    runner: Runner
    folder: Path
    threads: int = 1
    seed: int = 0
    limit: float | None = None
    say: Callable[[str], None] = print
    progress: Progress | None = None
    _model: CostModel = field(init=False)
    _log: TuningLog = field(init=False)

    def __post_init__(self) -> None:
        self._model = CostModel(self.seed)
        self._log = TuningLog.read(self.folder)
        self._cpu = self.runner.cpu
        self._versions = {name: value for name, value in versions().items() if name in ("tvm_mpq", "tvm")}
        self._path = log_file(self.folder, self._cpu)
        for note in self._log.notes:
            self.say(note)

    def tune(self, plans: Mapping[str, Mapping[KernelSpec, int]], trials: int) -> TuningResult:
        """Search the kernels that each of ``plans`` calls so often, ``trials`` tiles measured for each plan.

        Records of this processor in the logs count as trials that were made. Raises MpqError if a log is not writable.
        """
        start = time.monotonic()
        self._learn()
        keys = list(dict.fromkeys(key for counts in plans.values() for key in counts))
        default, seconds_each = self._defaults(keys)
        shares = [{key: count * default[key] for key, count in counts.items()} for counts in plans.values()]
        budgets = [allot(share, trials) for share in shares]
        given = {key: max(budget.get(key, 0) for budget in budgets) for key in keys}
        weight = {key: max(s.get(key, 0.0) / sum(s.values()) for s in shares) for key in keys}
        order = [
            key for key in sorted(keys, key=lambda key: -weight[key]) if not self._finished(key, given[key])
        ]
        searches = [self._search(key, given[key]) for key in order]
        left = sum(max(0, min(s.trials, len(s.space)) - len(s.speedups)) for s in searches)
        self.say(
            f"{len(keys)} kernels, {len(keys) - len(order)} of them tuned before; {left} trials left: "
            f"at most about {_duration(left * seconds_each + len(order))}"
            + ("" if self.limit is None else f", limited to {_duration(self.limit)}")
        )
        task = None if self.progress is None else self.progress.add_task("tuning", total=left)
        for search in searches:
            if self._late(start):
                break
            self._run(search, start, task)
        kernels = [
            self._tuned(name, key, count, default[key])
            for name, counts in plans.items()
            for key, count in counts.items()
        ]
        return TuningResult(tuple(kernels), self.threads, time.monotonic() - start)

    def _late(self, start: float) -> bool:
        return self.limit is not None and time.monotonic() - start > self.limit

    def _records(self, key: KernelSpec) -> list[TuningRecord]:
        return [record for record in self._log.of(key, self.threads) if record.cpu == self._cpu]

    def _final(self, key: KernelSpec) -> TuningRecord | None:
        finals = [record for record in self._records(key) if record.stage == "final"]
        return max(finals, key=lambda record: record.speedup) if finals else None

    def _finished(self, key: KernelSpec, trials: int) -> bool:
        most = max((r.trials for r in self._records(key) if r.stage == "final"), default=-1)
        return most >= _ENOUGH * trials

    def _defaults(self, keys: Sequence[KernelSpec]) -> tuple[dict[KernelSpec, float], float]:
        """Seconds of each key with its default tile, and of building and measuring one kernel."""
        known = {key: records[-1].default_seconds for key in keys if (records := self._records(key))}
        unknown = [key for key in keys if key not in known]
        start = time.monotonic()
        task = None if self.progress is None else self.progress.add_task("default tiles", total=len(unknown))
        for first in range(0, len(unknown), BATCH):
            part = unknown[first : first + BATCH]
            timings = self.runner.measure([(key, default_of(key)) for key in part], _DEFAULT_ROUNDS)
            for key, timing in zip(part, timings, strict=True):
                if timing.median is None:
                    raise RuntimeError(f"the default tile of {key.name} failed: {timing.error}")
                known[key] = timing.median
            self._keep(
                [self._record(key, default_of(key), known[key], known[key], "search", 0) for key in part]
            )
            if self.progress is not None and task is not None:
                self.progress.advance(task, len(part))
        return known, (time.monotonic() - start) / max(1, len(unknown)) if unknown else 0.1

    def _search(self, key: KernelSpec, trials: int) -> Search:
        # The stream of chance is the key's own: what else is tuned does not change it.
        digest = [self.seed, *key.to_json().encode()]
        search = Search(key, trials, np.random.default_rng(digest))
        search.learn([record for record in self._records(key) if record.stage == "search"])
        return search

    def _learn(self) -> None:
        """Let the model learn from what the log knows of this processor, of other networks too."""
        known: dict[KernelSpec, list[TuningRecord]] = {}
        for record in self._log.records:
            if (record.threads, record.cpu, record.stage) == (self.threads, self._cpu, "search"):
                known.setdefault(record.spec, []).append(record)
        for key, records in known.items():
            self._model.add(key, [r.tile for r in records], [r.speedup for r in records])

    def _run(self, search: Search, start: float, task: TaskID | None) -> None:
        planned = max(0, min(search.trials, len(search.space)) - len(search.speedups))
        while not search.done and not self._late(start):
            proposed = search.propose(self._model)
            batch = search.measure(proposed, self.runner)
            reference = batch[0][1]
            assert reference is not None
            records = [
                self._record(search.spec, tile, seconds, reference, "search", search.trials)
                for tile, seconds in batch
            ]
            self._keep(records)
            self._model.add(search.spec, [r.tile for r in records], [r.speedup for r in records])
            if self.progress is not None and task is not None:
                self.progress.update(task, advance=min(len(proposed), planned), description=search.spec.name)
                planned -= min(len(proposed), planned)
        if not search.done and len(search.speedups) <= 1:
            return
        given = search.trials if search.done else len(search.speedups)
        tile, seconds, reference = search.choose(self.runner)
        self._keep([self._record(search.spec, tile, seconds, reference, "final", given)])
        if self.progress is not None and task is not None:
            self.progress.advance(task, planned)

    def _keep(self, records: list[TuningRecord]) -> None:
        append(self._path, records)
        self._log.records += records

    def _record(
        self, key: KernelSpec, tile: Tile, seconds: float | None, reference: float, stage: str, trials: int
    ) -> TuningRecord:
        return TuningRecord(
            spec=key,
            tile=tile,
            threads=self.threads,
            seconds=seconds,
            default_seconds=reference,
            stage=stage,
            trials=trials,
            cpu=self._cpu,
            seed=self.seed,
            versions=self._versions,
        )

    def _tuned(self, plan: str, key: KernelSpec, count: int, default: float) -> TunedKernel:
        final = self._final(key)
        tiles = {record.tile for record in self._records(key)}
        if final is None or final.seconds is None:
            return TunedKernel(plan, key.name, count, default, default, len(tiles), False)
        return TunedKernel(plan, key.name, count, final.default_seconds, final.seconds, len(tiles), True)


def default_of(key: KernelSpec) -> Tile:
    """The tile that ``key`` has where none was tuned."""
    return key.faster().default_tile()


def allot(seconds: Mapping[KernelSpec, float], trials: int) -> dict[KernelSpec, int]:
    """``trials`` divided: half in equal parts, half by each key's share of the time; at least a batch each."""
    total = sum(seconds.values()) or 1.0
    return {
        key: max(BATCH, round(trials * (0.5 / len(seconds) + 0.5 * value / total)))
        for key, value in seconds.items()
    }


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"
