"""tvm_mpq itself as a contestant: the package is compiled once and run by the session that users get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvm_mpq.compiler import compile_model
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session
from tvm_mpq.search.candidates import Rounding


def compiled(model: Path, calibration: Path, precision: str, target: str) -> Package:
    """``model`` with every operator at ``precision``, its ranges from the .npz ``calibration``.

    Rounded to nearest, which is quick: what is measured is time.
    """
    nearest = Rounding("nearest", correct_biases=False)
    return compile_model(
        model, target=target, calibration=calibration, precision=precision, rounding=nearest, baseline=False
    )


class Ours:
    """A package in a session."""

    def __init__(self, package: Package, x: NDArray[np.float32], threads: int) -> None:
        self._session = Session(package, threads=threads)
        self._x = x

    def time(self, calls: int, warmup: int) -> NDArray[np.float64]:
        return self._session.time(self._x, calls, warmup)

    def output(self) -> NDArray[np.float32]:
        return np.asarray(self._session.run(self._x)[0])
