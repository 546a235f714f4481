"""What a GPU multiplies with, and how much of a network each of it does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from tvm.tirx import PrimFunc

from tvm_mpq.runtime.metadata import KernelCall

Unit = Literal["tensor core", "dp4a", "plain"]
"""What multiplies: matrices of a warp, four bytes of a thread, or one number."""
_UNITS: dict[str, Unit] = {
    "imma": "tensor core",
    "imma4": "tensor core",
    "hmma": "tensor core",
    "dp4a": "dp4a",
    "imad": "plain",
    "ffma": "plain",
}
"""By the steps of ``tvm_mpq.gpu``."""


WORK = "mpq.work"
"""On a kernel without weights that multiplies matrices: JSON [step, multiply-accumulates, those with padding]."""


def with_work(kernel: PrimFunc, step: str, macs: int, steps: float) -> PrimFunc:
    """``kernel``, marked with what a call of it does."""
    return kernel.with_attr(WORK, json.dumps([step, macs, steps]))


def macs_by_unit(calls: Iterable[KernelCall]) -> dict[Unit, int]:
    """Multiply-accumulates of the operators (padding not counted) by what does them; calls of a package for a GPU."""
    counts: dict[Unit, int] = {"tensor core": 0, "dp4a": 0, "plain": 0}
    for call in calls:
        if call.step:
            counts[_UNITS[call.step]] += call.macs
    return counts
