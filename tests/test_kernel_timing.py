"""How the tuner times a call: what passes through the caches before it is no part of it, and changes no argument."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from tvm_mpq.runtime.kernel_timing import _Kernel, _Processor


def test_what_is_done_between_calls_does_not_count_and_changes_nothing() -> None:
    place = _Processor()
    values = [np.arange(64, dtype=np.uint8), np.ones(8, np.int8), np.full(16, 7, np.uint8)]
    seen: list[list[np.ndarray]] = []

    def function(*tensors: Any) -> None:
        seen.append([tensor.numpy() for tensor in tensors])

    kernel = _Kernel(function, place.arguments(values), place)
    before, start = len(seen), time.perf_counter()
    seconds = kernel.sample()
    elapsed = time.perf_counter() - start
    # Megabytes are read before each call of a few microseconds.
    assert 0.0 < seconds < 0.5 * elapsed
    assert len(seen) - before == place.most_calls
    for found in seen:
        for tensor, value in zip(found, values, strict=True):
            np.testing.assert_array_equal(tensor, value)
