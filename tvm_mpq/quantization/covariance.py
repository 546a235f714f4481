"""Second moments of what an operator's weights are multiplied with, gathered a batch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.patches import Window, patches

Floats = npt.NDArray[np.float64]
Patches = npt.NDArray[np.float32]

# Neighbouring positions are alike: of a large map, half as many as there are moments a row say as much as all.
_FEWEST = 64


@dataclass(frozen=True)
class InputStatistics:
    """Moments of one operator's inputs x over output positions; K = C/groups · r · s in the order of ONNX's weights.

    ``reference`` is the input that the operator has in fp32, x the one it has in the quantized network. Float64, in
    real units: ``count`` the positions, ``mean`` E[x] and ``reference_mean`` [groups, K], ``second`` E[x xᵀ] and
    ``cross`` E[reference xᵀ] [groups, K, K].
    """

    count: int
    mean: Floats
    second: Floats
    reference_mean: Floats
    cross: Floats


class Sampler:
    """The patches of one operator's inputs, of large maps on a grid of positions that moves with each batch."""

    def __init__(self, window: Window) -> None:
        self.window = window

    def __call__(self, x: npt.NDArray[Any], batch: int) -> Patches:
        """[groups, K, positions] float32 of the ``batch``-th batch, real values [N, H, W, C]."""
        rows, columns = self.window.outputs(x.shape[1], x.shape[2])
        reduction = x.shape[3] // self.window.groups * self.window.kernel[0] * self.window.kernel[1]
        every = max(1, math.ceil(math.sqrt(rows * columns / max(_FEWEST, reduction // 2))))
        return patches(np.asarray(x, np.float32), self.window, every, batch)


class Covariance:
    """Adds up the moments of one operator. Products are float32 within a batch, sums of batches float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[Floats] = []

    def update(self, seen: Patches, meant: Patches) -> None:
        """Add patches [groups, K, positions] of the quantized network and of fp32 at the same positions."""
        turned = seen.transpose(0, 2, 1)
        parts = [seen.sum(axis=2), np.matmul(seen, turned), meant.sum(axis=2), np.matmul(meant, turned)]
        if not self._sums:
            self._sums = [np.zeros(part.shape) for part in parts]
        for total, part in zip(self._sums, parts, strict=True):
            total += part
        self._count += seen.shape[2]

    def statistics(self) -> InputStatistics:
        """The moments so far; raises ValueError where nothing was added."""
        if self._count == 0:
            raise ValueError("no inputs were seen")
        mean, second, reference_mean, cross = (total / self._count for total in self._sums)
        return InputStatistics(self._count, mean, second, reference_mean, cross)
