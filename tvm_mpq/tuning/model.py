"""The cost model: gradient-boosted trees that predict how fast a tile is beside the default tile.

It is MetaSchedule's (``tvm.s_tir.meta_schedule.cost_model.XGBModel``): XGBoost with the same parameters on a normalized
throughput, the fast examples weighing more. Its features are of tiles and not of loops, so that a space of thousands is
ranked without being scheduled, and one model learns from all kernels of a run and of the logs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.tuning.features import features

_PARAMETERS = {"max_depth": 10, "gamma": 0.001, "min_child_weight": 0, "eta": 0.2, "nthread": 1}
_ROUNDS = 60
_FEWEST = 32
"""Examples to learn from before the model is asked."""


class CostModel:
    """Learns from measurements, and then predicts."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._examples: list[npt.NDArray[np.float32]] = []
        self._speedups: list[float] = []
        self._booster: Any = None

    @property
    def ready(self) -> bool:
        """Whether it has seen enough to be asked."""
        return len(self._speedups) >= _FEWEST

    def add(self, spec: KernelSpec, tiles: list[Tile], speedups: list[float]) -> None:
        """Learn what tiles of one key gave: the default's seconds over theirs, 0 for failures."""
        if tiles:
            self._examples.append(features(spec, tiles))
            self._speedups += speedups
            self._booster = None

    def predict(self, spec: KernelSpec, tiles: list[Tile]) -> npt.NDArray[np.float32]:
        """The expected speed-up of each tile over the default."""
        if self._booster is None:
            target = np.array(self._speedups, np.float32)
            data = xgboost.DMatrix(np.concatenate(self._examples), target, weight=target)
            parameters = {**_PARAMETERS, "seed": self._seed}
            self._booster = xgboost.train(parameters, data, _ROUNDS)
        predicted: npt.NDArray[np.float32] = self._booster.predict(xgboost.DMatrix(features(spec, tiles)))
        return predicted
