"""Ranges by the loss: the 8-bit grid of every tensor that costs the loss least.

Rounding and clipping move the elements y of a tensor to Q(y), and the loss to first order by Σ g·(Q(y) − y), with
g = ∂loss/∂y. Half of the expected square of that sum is the second-order change of a loss that is a likelihood, whose
Hessian is the Fisher information E g gᵀ. Unlike the squared error it knows which elements matter, and that clipped ones
err together. Q depends on the value alone, so a sample is kept as the sum of g in each cell of a histogram of y.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from rich.progress import Progress
from tvm import relax

from tvm_mpq.dataset import Dataset
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.quantization.ranges import least_loss_range
from tvm_mpq.sensitivity.backward import Differentiated
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder
from tvm_mpq.sensitivity.losses import RelaxLoss
from tvm_mpq.sensitivity.recorded import recorded
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges

Array = npt.NDArray[Any]

_CELLS = 2048


def loss_ranges(
    mod: tvm.IRModule,
    data: Dataset,
    loss: RelaxLoss,
    widest: TensorRanges,
    target: Target,
    progress: Progress | None = None,
) -> TensorRanges:
    """The ranges inside ``widest``, which are the values' own, of the operators' outputs in the canonical ``mod``.

    Those of the network's inputs stay, and of tensors that the loss does not depend on. Raises MpqError as
    :func:`~tvm_mpq.sensitivity.recorded.recorded` does.
    """
    wanted = [
        operator.name for operator in operators(mod) if np.ptp(widest.operators.get(operator.name, (0, 0)))
    ]
    masses = {name: GradientHistogram(*widest.operators[name]) for name in wanted}
    batch = io_specs(mod)[0][0].shape[0]
    task = None if progress is None else progress.add_task("ranges by the loss", total=-(-len(data) // batch))
    for arrays in recorded(mod, loss, data, target, wanted, _value_and_gradient, drawn=True):
        for name, mass in masses.items():
            if f"{name}:g" in arrays:
                mass.update(arrays[f"{name}:y"], arrays[f"{name}:g"])
        if progress is not None and task is not None:
            progress.advance(task)
    found = {name: mass.range() for name, mass in masses.items()}
    return TensorRanges(widest.inputs, {**widest.operators, **found})


class GradientHistogram:
    """Of one tensor: the sum of its gradient in each cell of a histogram of its values, sample by sample.

    Exact zeros, which every grid represents, are left out.
    """

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high
        self._rows: list[Array] = []
        self._counts = np.zeros(_CELLS)
        self._sums = np.zeros(_CELLS)

    def update(self, values: Array, gradients: Array) -> None:
        """Add samples, float32 [n, …] both."""
        per_value = np.float32(_CELLS / (self._high - self._low))
        for y, g in zip(values, gradients, strict=True):
            flat = y.reshape(-1)
            cells = ((flat - np.float32(self._low)) * per_value).astype(np.int32)
            # The upper end, and what another order of summation put a little outside.
            np.clip(cells, 0, _CELLS - 1, out=cells)
            cells[flat == 0.0] = _CELLS
            self._counts += np.bincount(cells, minlength=_CELLS + 1)[:_CELLS]
            self._sums += np.bincount(cells, flat, _CELLS + 1)[:_CELLS]
            self._rows.append(np.bincount(cells, g.reshape(-1), _CELLS + 1)[:_CELLS])

    def range(self) -> tuple[float, float]:
        """The best (low, high); that of the values where nothing was seen or the gradient is zero."""
        used = np.flatnonzero(self._counts)
        rows = np.array(self._rows).reshape(len(self._rows), _CELLS)[:, used]
        if not rows.any():
            return self._low, self._high
        return least_loss_range(self._low, self._high, self._sums[used] / self._counts[used], rows)


def _value_and_gradient(_builder: CanonicalBuilder, operator: Differentiated) -> Mapping[str, relax.Var]:
    return {f"{operator.name}:y": operator.result, f"{operator.name}:g": operator.gradient}
