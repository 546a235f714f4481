"""How images or stored pixels become a network's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_mpq.dataset.dataset import Dataset
from tvm_mpq.dataset.opening import open_dataset
from tvm_mpq.tensor_spec import TensorSpec


@dataclass(frozen=True)
class Preprocess:
    """How a folder of images becomes inputs: ``x = (pixel − mean) · scale``, resized to ``resize`` × ``resize``."""

    resize: int | None = None
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def open(self, path: str | Path, inputs: Sequence[TensorSpec], classes: int | None = None) -> Dataset:
        """The data at ``path``; raises MpqError as :func:`~tvm_mpq.dataset.opening.open_dataset` does."""
        return open_dataset(
            path, inputs, resize=self.resize, mean=self.mean, scale=self.scale, classes=classes
        )
