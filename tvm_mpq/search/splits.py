"""Three sets of samples that share none: to calibrate on, to select by, and to report on."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_mpq.dataset import Dataset, split
from tvm_mpq.errors import MpqError
from tvm_mpq.loss import Loss


@dataclass(frozen=True)
class Splits:
    """The sets, and in words how they came about."""

    calibration: Dataset
    selection: Dataset
    evaluation: Dataset
    how: str

    @classmethod
    def of(
        cls, calibration: Dataset, selection: Dataset | None, evaluation: Dataset | None, seed: int
    ) -> Splits:
        """The sets given; those missing are cut from one that is there, at random by ``seed``.

        Without ``evaluation`` half of the ``selection`` set is kept for it; without that too, the calibration set is
        cut 1/2, 1/4, 1/4; without ``selection`` alone, 2/3, 1/3. Raises MpqError for sets too small to be cut.
        """
        if selection is not None and evaluation is not None:
            return cls(calibration, selection, evaluation, "given")
        if selection is not None:
            first, second = split(selection, [0.5, 0.5], seed)
            return cls(calibration, first, second, f"evaluation is half of the selection set, by seed {seed}")
        if evaluation is not None:
            first, second = split(calibration, [2 / 3, 1 / 3], seed)
            return cls(
                first, second, evaluation, f"selection is a third of the calibration set, by seed {seed}"
            )
        first, second, third = split(calibration, [0.5, 0.25, 0.25], seed)
        return cls(
            first,
            second,
            third,
            f"selection and evaluation are a quarter each of the calibration set, by seed {seed}",
        )

    def check(self, loss: Loss) -> None:
        """Raise MpqError for sets that ``loss`` cannot be measured on, or whose measured loss would have no error."""
        for name, data in (("selection", self.selection), ("evaluation", self.evaluation)):
            if loss.needs_labels and data.labels is None:
                raise MpqError(
                    f"loss {loss.name!r} needs labels and the data has none: add them or use --loss kl"
                )
            if len(data) < 2:
                raise MpqError(f"the {name} set has one sample: at least 2 are needed to tell luck from gain")

    def hashes(self) -> dict[str, str]:
        """The content hash of each set."""
        return {
            name: getattr(self, name).content_hash() for name in ("calibration", "selection", "evaluation")
        }
