"""Running the compiled analysis over samples, from where an earlier run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.sensitivity.cache import SampleCache
from tvm_mpq.sensitivity.comparison import Comparison, Places

Array = npt.NDArray[Any]


@dataclass
class Collected:
    """Losses and products of the samples done so far, batch by batch, and what the products are of."""

    losses: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    places: Places = field(default_factory=lambda: Places({}, {}))

    @classmethod
    def load(cls, store: SampleCache) -> Collected:
        """What ``store`` holds."""
        found = cls()
        places = store.load(found.losses, found.values)
        if places:
            found.places = Places.from_json(places)
        return found

    @property
    def samples(self) -> int:
        """The number of samples done."""
        return sum(len(part) for part in self.losses)

    def arrays(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Losses [samples] and products [comparisons, samples, 2]."""
        return np.concatenate(self.losses), np.concatenate(self.values, axis=1)


@dataclass(frozen=True)
class Feeds:
    """Samples, labels and reference outputs (each [samples, …]) in batches of ``size``."""

    data: Dataset
    size: int
    labels: Array | None
    reference: Sequence[Array] | None

    def batch(self, start: int) -> dict[str, Array]:
        """The inputs of the compiled analysis for the samples from ``start``, filled up with the last one."""
        at = np.minimum(np.arange(start, start + self.size), len(self.data) - 1)
        feeds = self.data.batch(at)
        if self.labels is not None:
            feeds["labels"] = self.labels[at]
        if self.reference is not None:
            feeds |= {f"reference.{i}": array[at] for i, array in enumerate(self.reference)}
        return feeds


def collect(
    comparison: Comparison,
    feeds: Feeds,
    done: Collected,
    store: SampleCache | None,
    progress: Progress | None,
    announce: Callable[[float], None] | None,
) -> None:
    """Append to ``done`` the samples that it lacks; raises MpqError where a loss or gradient is NaN or infinite.

    ``announce`` gets the seconds that remain, once a second of batches shows them; the first is not one of these, as
    it takes several times as long as the others.
    """
    done.places = comparison.places
    first, count = done.samples, len(feeds.data)
    shapes = {spec.name: spec.shape for spec in comparison.inputs}
    task = None if progress is None else progress.add_task("analysing", total=count, completed=first)
    warm = None
    for start in range(first, count, feeds.size):
        batch = feeds.batch(start)
        if "labels" in shapes and "labels" in batch:
            batch["labels"] = batch["labels"].reshape(shapes["labels"])
        found = comparison(batch)
        keep = min(feeds.size, count - start)
        losses, values = found.losses[:keep], found.values[:, :keep]
        if not (np.isfinite(losses).all() and np.isfinite(values).all()):
            raise MpqError(
                f"the loss or its gradient is NaN or infinite for a sample of {start}…{start + keep - 1}: "
                "look at the data and the loss"
            )
        done.losses.append(losses)
        done.values.append(values)
        if store is not None:
            store.keep(done.losses, done.values, comparison.places.to_json(), start + keep == count)
        if progress is not None and task is not None:
            progress.advance(task, keep)
        now = time.perf_counter()
        if warm is None:
            warm = now
        elif announce is not None and now - warm > 1:
            announce((now - warm) / (start - first) * (count - start - keep))
            announce = None
