"""The search for one key's tile: batches chosen by the cost model and by chance, then the best against the default."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.tuning.log import NOISE
from tvm_mpq.tuning.model import CostModel
from tvm_mpq.tuning.record import TuningRecord
from tvm_mpq.tuning.runner import Runner, Timing

BATCH = 16
_RANDOM_SHARE = 0.25
_ROUNDS = 7
_PATIENCE = 2
"""A search ends after this many batches that improved nothing."""
_IMPROVEMENT = 1.01
_FINALISTS = 4
_FINAL_ROUNDS = 31


@dataclass
class Search:
    """One key's space, what is known of it, and the generator of chance."""

    spec: KernelSpec
    trials: int
    random: np.random.Generator
    speedups: dict[Tile, float] = field(default_factory=dict)
    _idle: int = 0

    def __post_init__(self) -> None:
        self.space = self.spec.space()

    @property
    def default(self) -> Tile:
        """The tile that all others are compared with."""
        return self.space[0]

    def learn(self, records: Sequence[TuningRecord]) -> None:
        """Take over what a log knows of this key: its tiles are not measured again."""
        for record in records:
            self.speedups[record.tile] = max(record.speedup, self.speedups.get(record.tile, 0.0))

    @property
    def done(self) -> bool:
        """Whether the trials or the space are used up, or the last batches improved nothing."""
        used = len(self.speedups) >= min(self.trials, len(self.space))
        return used or self._idle >= _PATIENCE

    def propose(self, model: CostModel) -> list[Tile]:
        """The tiles to measure next, beside the default: none that was measured before."""
        left = [tile for tile in self.space if tile not in self.speedups and tile != self.default]
        # The default takes one of the trials of the first batch.
        count = min(BATCH - 1, len(left), max(1, self.trials - max(1, len(self.speedups))))
        guided = 0
        if model.ready:
            # Before anything of this key was measured the model only knows other shapes.
            guided = round(count * (1 - _RANDOM_SHARE) if len(self.speedups) > 1 else count / 2)
        chosen: list[Tile] = []
        if guided:
            order = np.argsort(-model.predict(self.spec, left), kind="stable")
            chosen = [left[i] for i in order[:guided]]
        taken = set(chosen)
        rest = [tile for tile in left if tile not in taken]
        picks = self.random.permutation(len(rest))[: count - len(chosen)]
        return chosen + [rest[i] for i in picks]

    def measure(self, tiles: list[Tile], runner: Runner) -> list[tuple[Tile, float | None]]:
        """The seconds of the default and of ``tiles``, the default first; None for a tile that fails.

        Raises RuntimeError when the default fails.
        """
        batch = [self.default, *tiles]
        timings = runner.measure([(self.spec, tile) for tile in batch], _ROUNDS)
        reference = self._reference(timings[0])
        before = max(self.speedups.values(), default=1.0)
        for tile, timing in zip(batch, timings, strict=True):
            self.speedups[tile] = reference / timing.median if timing.median else 0.0
        improved = max(self.speedups.values()) > _IMPROVEMENT * before
        self._idle = 0 if improved else self._idle + 1
        return [(tile, timing.median) for tile, timing in zip(batch, timings, strict=True)]

    def choose(self, runner: Runner) -> tuple[Tile, float, float]:
        """The best few against the default again, longer: the tile to use, its seconds and the default's.

        It is the default unless another was faster by more than the noise, in all and in four rounds of five.
        """
        ranked = sorted(self.speedups, key=lambda tile: -self.speedups[tile])
        finalists = [tile for tile in ranked if tile != self.default and self.speedups[tile] > 0][:_FINALISTS]
        batch = [self.default, *finalists]
        timings = runner.measure([(self.spec, tile) for tile in batch], _FINAL_ROUNDS)
        reference = self._reference(timings[0])
        best, seconds = self.default, reference
        for tile, timing in zip(finalists, timings[1:], strict=True):
            if timing.median and timing.median < seconds and clearly_faster(timing, timings[0]):
                best, seconds = tile, timing.median
        return best, seconds, reference

    def _reference(self, timing: Timing) -> float:
        if timing.median is None:
            raise RuntimeError(f"the default tile of {self.spec.name} failed: {timing.error}")
        return timing.median


def clearly_faster(timing: Timing, default: Timing) -> bool:
    """Whether a tile beat the default by more than the noise, round by round."""
    ratios = [ours / theirs for ours, theirs in zip(timing.seconds, default.seconds, strict=False)]
    faster = sum(ratio < 1 for ratio in ratios)
    return statistics.median(ratios) * NOISE < 1 and faster >= 0.8 * len(ratios)
