"""A view on samples: which ones, in which order; reading is left to the source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError

Array = npt.NDArray[Any]
Indices = Sequence[int] | npt.NDArray[np.integer[Any]]


class Source(Protocol):
    """Where samples come from. Indices are those of the file or folder, from 0."""

    @property
    def size(self) -> int:
        """The number of samples."""

    @property
    def labels(self) -> Array | None:
        """The labels, first axis = samples; None where the data has none."""

    def read(self, indices: npt.NDArray[np.intp]) -> dict[str, Array]:
        """Input name → array [len(indices), …] in the network's dtype."""

    def digest(self, index: int) -> bytes:
        """A hash of everything one sample's input arrays depend on."""


class Dataset:
    """An ordered choice of samples of one source; choosing again is cheap and copies no sample."""

    def __init__(self, source: Source, indices: Indices | None = None) -> None:
        self._source = source
        chosen = np.arange(source.size) if indices is None else np.asarray(indices, dtype=np.intp)
        self._indices: npt.NDArray[np.intp] = chosen.astype(np.intp)

    def __len__(self) -> int:
        return len(self._indices)

    @cached_property
    def labels(self) -> Array | None:
        """The labels [len(self), …] in this view's order, int64 for classes; None where the data has none."""
        labels = self._source.labels
        return None if labels is None else labels[self._indices]

    def batch(self, indices: Indices) -> dict[str, Array]:
        """The samples at ``indices`` of this view: input name → array [len(indices), …] in the input's dtype.

        The trailing axes are the network's input without its batch axis. Raises MpqError for an image that
        cannot be decoded.
        """
        return self._source.read(self._indices[np.asarray(indices, dtype=np.intp)])

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Every sample in order, ``size`` at a time, ready for a network whose fixed batch is ``size``.

        An incomplete last batch is filled up by repeating the last sample. Whoever runs the network drops
        that padding by joining the outputs of all batches and keeping the first ``len(self)`` rows.
        """
        if size < 1:
            raise ValueError(f"a batch needs at least one sample, not {size}")
        for start in range(0, len(self), size):
            yield self.batch(np.minimum(np.arange(start, start + size), len(self) - 1))

    def subset(self, indices: Indices) -> Dataset:
        """The samples at ``indices`` of this view, in that order."""
        return Dataset(self._source, self._indices[np.asarray(indices, dtype=np.intp)])

    def take(self, count: int) -> Dataset:
        """At most ``count`` samples spread evenly over this view; always the same ones.

        Data is often sorted by class, so the first ``count`` would be few classes. Raises MpqError if
        ``count`` is less than 1.
        """
        if count < 1:
            raise MpqError(f"cannot take {count} samples: ask for at least 1")
        count = min(count, len(self))
        return self.subset(np.arange(count) * len(self) // count)

    def content_hash(self) -> str:
        """SHA-256 in hexadecimal of the samples (preprocessing included), their order and labels.

        It does not depend on where the data lies, so it can be part of a cache key.
        """
        digest = hashlib.sha256()
        for index in self._indices:
            digest.update(self._source.digest(int(index)))
        if self.labels is not None:
            digest.update(f"labels {self.labels.dtype} {self.labels.shape}".encode())
            digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()


def split(dataset: Dataset, fractions: Sequence[float], seed: int) -> list[Dataset]:
    """Disjoint random parts of ``dataset``, one a fraction; the same ones for the same ``seed``.

    Each part keeps the order of ``dataset``. ``fractions`` are positive and sum to at most 1.
    Raises MpqError where they do not, or where a part would be empty.
    """
    if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise MpqError(
            f"cannot split data into {list(fractions)}: fractions are positive and sum to at most 1"
        )
    bounds = np.rint(np.cumsum([0.0, *fractions]) * len(dataset)).astype(int)
    order = np.random.default_rng(seed).permutation(len(dataset))
    parts = [np.sort(order[low:high]) for low, high in pairwise(bounds)]
    if any(len(part) == 0 for part in parts):
        raise MpqError(f"cannot split {len(dataset)} samples into {list(fractions)}: a part would be empty")
    return [dataset.subset(part) for part in parts]
