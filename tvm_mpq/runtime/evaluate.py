"""The loss of packages over a data set, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.loss import Loss, top1
from tvm_mpq.runtime.metadata import Metadata
from tvm_mpq.runtime.session import Session


@dataclass(frozen=True)
class SampleLosses:
    """One package's loss and, for classifiers, share of correct labels for each sample, both float64 [n].

    ``divergence`` float64 [n], where it was asked for, is how far the outputs are from fp32's.
    """

    losses: npt.NDArray[np.float64]
    correct: npt.NDArray[np.float64] | None
    divergence: npt.NDArray[np.float64] | None = None

    @property
    def accuracy(self) -> float | None:
        """The mean of ``correct``."""
        return None if self.correct is None else float(self.correct.mean())


def evaluate(
    session: Session,
    baseline: Session | None,
    data: Dataset,
    loss: Loss,
    progress: Progress | None = None,
) -> tuple[SampleLosses, SampleLosses | None]:
    """The losses of the package and of its fp32 baseline, whose outputs are also the loss's reference.

    Only one batch of samples and outputs is in memory at a time. Raises MpqError where the loss does not fit
    the outputs and the data, or where the output's first axis is not the batch.
    """
    batch = batch_size(session.package.metadata)
    labels = data.labels
    sessions = [session] if baseline is None else [session, baseline]
    found: list[list[tuple[Any, Any]]] = [[] for _ in sessions]
    task = None if progress is None else progress.add_task("Evaluating", total=len(data))
    for start in range(0, len(data), batch):
        count = min(batch, len(data) - start)
        # The network's batch is fixed: the last one is filled up with the last sample again.
        inputs = data.batch(np.minimum(np.arange(start, start + batch), len(data) - 1))
        outputs = [[array[:count] for array in s.run(inputs)] for s in sessions]
        reference = None if baseline is None else outputs[1]
        some = None if labels is None else labels[start : start + count]
        for per_session, arrays in zip(found, outputs, strict=True):
            correct = top1(arrays, some) if loss.classification and some is not None else None
            per_session.append((loss.per_sample(arrays, some, reference), correct))
        if progress is not None and task is not None:
            progress.advance(task, count)
    results = [_joined(per_session) for per_session in found]
    return results[0], (results[1] if baseline is not None else None)


def batch_size(metadata: Metadata) -> int:
    """The samples of one run; raises MpqError where an output's first axis is not that of the inputs."""
    batch = metadata.inputs[0].shape[0] if metadata.inputs[0].shape else 0
    for spec in (*metadata.inputs, *metadata.outputs):
        if not spec.shape or spec.shape[0] != batch:
            raise MpqError(
                f"{spec.name!r} has shape {list(spec.shape)} where the batch is {batch}: "
                "a loss for each sample needs networks whose first axes are all the batch"
            )
    return batch


def _joined(parts: Sequence[tuple[Any, Any]]) -> SampleLosses:
    losses = np.concatenate([losses for losses, _ in parts])
    rights = [right for _, right in parts if right is not None]
    return SampleLosses(losses, np.concatenate(rights) if rights else None)
