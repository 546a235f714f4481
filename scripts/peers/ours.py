"""tvm_mpq itself as a contestant: the package is compiled once and run by the session that users get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tvm_mpq.compiler import compile_model

from tvm_mpq.dataset import Dataset
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session


def compiled(model: Path, data: Dataset, precision: str, target: str) -> Package:
    """``model`` with every operator at ``precision``, calibrated on ``data`` where that is an integer one."""
    return compile_model(model, target=target, calibration=data, precision=precision)


class Ours:
    """A package in a session."""

    def __init__(self, package: Package, x: NDArray[np.float32], threads: int) -> None:
        self._session = Session(package, threads=threads)
        self._inputs = {"input": x}

    def time(self, calls: int, warmup: int) -> NDArray[np.float64]:
        return np.asarray(self._session.time(self._inputs, calls, warmup))

    def output(self) -> NDArray[np.float32]:
        return np.asarray(self._session.run(self._inputs)[0])
