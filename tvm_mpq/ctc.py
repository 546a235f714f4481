"""Connectionist temporal classification: how improbable a sequence of labels is in whatever alignment, in float64.

Outputs are [n, positions, classes], class 0 is the blank. Labels are [n, length]: classes from 1, behind them −1 where
a sample has fewer. A path goes through blank, label, blank, label, …, blank (*states*), one of them at each position;
it stays, goes one on, or skips a blank between two labels that differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError

Array = npt.NDArray[Any]


def connectionist_loss(logs: npt.NDArray[np.float64], labels: Array) -> npt.NDArray[np.float64]:
    """−log P(labels) [n] for ``logs`` [n, positions, classes], the logarithms of each position's probabilities.

    Raises MpqError for labels that are none, and where there are more of them than positions to say them in.
    """
    n, positions, classes = logs.shape
    if labels.ndim < 2 or len(labels) != n:
        raise MpqError(f"ctc needs labels [{n}, length], not {list(labels.shape)}")
    wanted = checked_labels(labels, positions, classes)
    length = (wanted >= 0).sum(axis=1)
    states = np.zeros((n, 2 * wanted.shape[1] + 1), np.int64)
    states[:, 1::2] = np.maximum(wanted, 0)
    skips = np.zeros(states.shape, bool)
    skips[:, 3::2] = wanted[:, 1:] != wanted[:, :-1]
    emitted = np.take_along_axis(logs, np.broadcast_to(states[:, None], (n, positions, states.shape[1])), 2)
    alpha = np.full(states.shape, -np.inf)
    alpha[:, :2] = emitted[:, 0, :2]
    for position in range(1, positions):
        one, two = (np.pad(alpha, ((0, 0), (by, 0)), constant_values=-np.inf)[:, :-by] for by in (1, 2))
        arrived = np.logaddexp(np.logaddexp(alpha, one), np.where(skips, two, -np.inf))
        alpha = arrived + emitted[:, position]
    last = np.take_along_axis(alpha, 2 * length[:, None], 1)[:, 0]
    before = np.take_along_axis(alpha, np.maximum(2 * length[:, None] - 1, 0), 1)[:, 0]
    return np.asarray(-np.logaddexp(last, np.where(length > 0, before, -np.inf)), np.float64)


def checked_labels(labels: Array, positions: int, classes: int) -> npt.NDArray[np.int64]:
    """Labels as int64 [n, length]; raises MpqError as :func:`connectionist_loss` does."""
    wanted = labels.reshape(len(labels), -1)
    present = wanted >= 0
    if not (present[:, :-1] | ~present[:, 1:]).all():
        raise MpqError("labels of ctc that a sample lacks are -1 behind the others")
    bad = present & ((wanted < 1) | (wanted >= classes) | (wanted != np.floor(wanted)))
    if bad.any():
        raise MpqError(
            f"label {wanted[bad][0]} does not fit ctc: classes are 1 to {classes - 1} here, 0 is blank"
        )
    # Equal neighbours need a blank between them.
    needed = present.sum(axis=1) + (present[:, 1:] & (wanted[:, 1:] == wanted[:, :-1])).sum(axis=1)
    if needed.max(initial=0) > positions:
        raise MpqError(f"labels that take {needed.max()} positions do not fit ctc of {positions} positions")
    return np.where(present, wanted, -1).astype(np.int64)
