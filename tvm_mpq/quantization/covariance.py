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
_TOGETHER = 512
_PLENTY = (16, 4096)


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
    """Adds up the moments of one operator. Products are float32 within a few batches, sums of those float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[Floats] = []
        self._waiting: list[tuple[Patches, Patches | None]] = []

    @property
    def plenty(self) -> bool:
        """Whether more positions would say little: there are 16 for each moment of a row, and 4096."""
        if not self._sums:
            return False
        return self._count >= max(_PLENTY[0] * self._sums[0].shape[1], _PLENTY[1])

    def update(self, seen: Patches, meant: Patches | None = None) -> None:
        """Add patches [groups, K, positions] of the quantized network and of fp32 at the same positions.

        Without ``meant``, in every call alike, the moments of fp32 are taken to be those of the quantized network.
        """
        self._waiting.append((seen, meant))
        self._count += seen.shape[2]
        # A product of K x K takes little longer for K positions than for a few, and many small ones their calls.
        if sum(each.shape[2] for each, _ in self._waiting) >= max(seen.shape[1], _TOGETHER):
            self._add()

    def statistics(self) -> InputStatistics:
        """The moments so far; raises ValueError where nothing was added."""
        if self._count == 0:
            raise ValueError("no inputs were seen")
        self._add()
        moments = [total / self._count for total in self._sums]
        mean, second, reference_mean, cross = moments if len(moments) == 4 else moments * 2
        return InputStatistics(self._count, mean, second, reference_mean, cross)

    def _add(self) -> None:
        if not self._waiting:
            return
        seen = np.concatenate([each for each, _ in self._waiting], axis=2)
        turned = seen.transpose(0, 2, 1)
        parts = [seen.sum(axis=2), np.matmul(seen, turned)]
        meant = [each for _, each in self._waiting if each is not None]
        if meant:
            joined = np.concatenate(meant, axis=2)
            parts += [joined.sum(axis=2), np.matmul(joined, turned)]
        if not self._sums:
            self._sums = [np.zeros(part.shape) for part in parts]
        for total, part in zip(self._sums, parts, strict=True):
            total += part
        self._waiting = []
