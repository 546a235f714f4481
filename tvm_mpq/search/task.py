"""What a search is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tvm import IRModule

from tvm_mpq.cost.table import CostTable
from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.precision import SEARCHED, Precision
from tvm_mpq.search.candidates import Rounding
from tvm_mpq.search.goal import Goal
from tvm_mpq.search.splits import Splits
from tvm_mpq.sensitivity.table import SensitivityTable


@dataclass(frozen=True)
class SearchOptions:
    """How to search; what to search for is the :class:`~tvm_mpq.search.goal.Goal`.

    ``evaluations`` is the number of plans measured on the selection set. Samples are of the calibration set:
    ``calibration_samples`` find ranges, ``rounding_samples`` input moments, ``gradient_samples`` gradients.
    ``observer`` says how ranges are found (:func:`~tvm_mpq.calibration.calibrate`), ``equalize`` whether channels are
    equalized (:mod:`~tvm_mpq.quantization.equalization`), ``rounding`` how weights are rounded.
    ``output_scale`` lets the loss choose the scale of the network's output; ``relinearize`` takes gradients again at
    the best plan after half of the evaluations. ``front`` is the number of limits on storage for which the best plan is
    reported too. ``threads`` is what latency is predicted for. ``probabilities``: the outputs are no logits, as they
    are in any case where the network ends in a softmax or sigmoid.
    """

    precisions: tuple[Precision, ...] = SEARCHED
    loss: str = "cross-entropy"
    probabilities: bool = False
    observer: str = "minmax"
    equalize: bool = False
    rounding: Rounding = field(default_factory=Rounding)
    calibration_samples: int = 256
    rounding_samples: int = 256
    gradient_samples: int = 256
    evaluations: int = 40
    output_scale: bool = True
    relinearize: bool = False
    front: int = 0
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise MpqError(f"a search has to measure at least 1 plan, not {self.evaluations}")


@dataclass(frozen=True)
class Task:
    """The network and its hash, the samples, what latency costs, and where to put what is found.

    ``costs`` are of the same network; ``sensitivity`` spares the analysis. ``cache`` is a folder that keeps what an
    interrupted search had computed. ``output`` is the plan file.
    """

    mod: IRModule
    model_sha256: str
    splits: Splits
    costs: CostTable
    goal: Goal
    options: SearchOptions
    sensitivity: SensitivityTable | None = None
    output: Path | None = None
    cache: Path | None = None

    def rounding_data(self) -> Dataset:
        """The samples that weights are rounded by: at most half of the calibration set, spread evenly."""
        half = (len(self.splits.calibration) + 1) // 2
        return self._every_other(0).take(min(self.options.rounding_samples, half))

    def gradient_data(self) -> Dataset:
        """The samples that gradients are taken on: none that weights are rounded by, unless there is only one."""
        return self._every_other(1).take(self.options.gradient_samples)

    def step_data(self) -> Dataset:
        """The samples that rounding led by the loss takes directions and lengths from."""
        return self.splits.calibration.take(2 * self.options.gradient_samples)

    def _every_other(self, first: int) -> Dataset:
        calibration = self.splits.calibration
        return calibration.subset(range(first % len(calibration), len(calibration), 2))
