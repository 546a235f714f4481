"""Calibration, selection and evaluation share no sample, whatever was given."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tvm_mpq.dataset.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.search.splits import Splits


class Numbers:
    """Samples that are numbers from ``first`` on, each its own label."""

    def __init__(self, first: int, size: int) -> None:
        self.size, self._all = size, np.arange(first, first + size)

    @property
    def labels(self) -> np.ndarray:
        return self._all

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": self._all[indices].astype(np.float32)}

    def digest(self, index: int) -> bytes:
        return bytes(str(self._all[index]), "ascii")


def data(first: int, size: int) -> Dataset:
    return Dataset(Numbers(first, size))


def members(splits: Splits) -> list[list[int]]:
    found = []
    for part in (splits.calibration, splits.selection, splits.evaluation):
        assert part.labels is not None
        found.append(part.labels.tolist())
    return found


@pytest.mark.parametrize(
    ("selection", "evaluation", "sizes", "how"),
    [
        (40, 60, [80, 40, 60], "given"),
        (40, None, [80, 20, 20], "evaluation is half of the selection set, by seed 7"),
        (None, 60, [53, 27, 60], "selection is a third of the calibration set, by seed 7"),
        (None, None, [40, 20, 20], "a quarter each of the calibration set, by seed 7"),
    ],
)
def test_no_sample_is_in_two_sets(
    selection: int | None, evaluation: int | None, sizes: list[int], how: str
) -> None:
    def split(seed: int) -> Splits:
        return Splits.of(
            data(0, 80),
            None if selection is None else data(1000, selection),
            None if evaluation is None else data(2000, evaluation),
            seed,
        )

    splits = split(7)
    sets = members(splits)
    assert [len(part) for part in sets] == sizes
    together = list(itertools.chain.from_iterable(sets))
    assert len(set(together)) == len(together) == 80 + (selection or 0) + (evaluation or 0)
    assert how in splits.how
    assert members(split(7)) == sets
    assert splits.hashes() == split(7).hashes()
    assert len(set(splits.hashes().values())) == 3
    # Only what is cut depends on the seed.
    assert (members(split(8)) == sets) == (selection is not None and evaluation is not None)


def test_sets_that_were_given_keep_their_origin() -> None:
    calibration, selection, evaluation = members(Splits.of(data(0, 30), data(100, 30), None, 0))
    assert calibration == list(range(30))
    assert all(100 <= value < 130 for value in selection + evaluation)
    calibration, selection, evaluation = members(Splits.of(data(0, 30), None, data(200, 30), 0))
    assert all(value < 30 for value in calibration + selection)
    assert evaluation == list(range(200, 230))


def test_sets_too_small_to_be_cut_are_a_mistake_of_the_user() -> None:
    with pytest.raises(MpqError, match="cannot split 1 samples"):
        Splits.of(data(0, 1), None, None, 0)
    with pytest.raises(MpqError, match="a part would be empty"):
        Splits.of(data(0, 5), data(100, 1), None, 0)
