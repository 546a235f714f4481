"""Taking turns: every contestant is timed a little in every round, so that a slow moment hits all of them."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from peers.contestants import Contestant

Key = TypeVar("Key", bound=Hashable)


def settle(window: float = 0.01, limit: float = 0.5) -> None:
    """Sleep until this process's threads sleep too, at most ``limit`` seconds.

    Thread pools spin for a while after their last task; the next contestant must not have to share the cores
    with them. Idle means less than a tenth of a ``window`` (seconds) of CPU time used in it.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(window)
        if time.process_time() - before < window / 10:
            return


def interleave(
    contestants: Mapping[Key, Contestant], rounds: int, calls: int, warmup: int = 2
) -> dict[Key, NDArray[np.float64]]:
    """Seconds of ``rounds`` × ``calls`` inferences of each contestant.

    Each round visits all of them, in order and backwards by turns; each visit starts with ``warmup`` untimed
    inferences, since the one before has emptied the caches.
    """
    seconds: dict[Key, list[NDArray[np.float64]]] = {key: [] for key in contestants}
    order = list(contestants)
    for _ in range(rounds):
        for key in order:
            settle()
            seconds[key].append(contestants[key].time(calls, warmup))
        order.reverse()
    return {key: np.concatenate(parts) for key, parts in seconds.items()}
