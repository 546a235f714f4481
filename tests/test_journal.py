"""The journal of a search that was killed, restarted, or changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.evaluate import SampleLosses
from tvm_mpq.search.journal import Journal

arrays = hnp.arrays(np.float64, 3, elements=st.floats(allow_nan=False, allow_infinity=False))
losses = st.builds(SampleLosses, arrays, st.none() | arrays, st.none() | arrays)


def assert_same(found: SampleLosses, expected: SampleLosses) -> None:
    for name in ("losses", "correct", "divergence"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is None:
            assert ours is None
        else:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == np.float64


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(max_size=8), losses, max_size=4))
def test_losses_come_back_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, plans: dict[str, SampleLosses]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "a.journal"
    journal = Journal.open(path, "k")
    for plan, value in plans.items():
        journal.add(plan, value)
    found = Journal.open(path, "k").known
    assert found.keys() == plans.keys()
    for plan, value in plans.items():
        assert_same(found[plan], value)


def test_a_journal_cut_anywhere_keeps_the_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    journal = Journal.open(path, "k")
    plans = {f"plan {i}": SampleLosses(np.array([i + 0.1, -i / 3]), np.array([1.0, 0.0])) for i in range(3)}
    for plan, value in plans.items():
        journal.add(plan, value)
    whole = path.read_bytes()
    ends = [whole.index(f'"plan {i}"'.encode()) for i in range(3)]
    ends = [whole.index(b"\n", end) for end in ends]
    head = whole.index(b"\n")
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again = Journal.open(path, "k")
        assert set(again.known) == {f"plan {i}" for i in range(3) if cut >= ends[i]}, cut
        again.add("new", plans["plan 1"])
        resumed = Journal.open(path, "k")
        assert set(resumed.known) == {*again.known} >= {"new"}, cut
        assert_same(resumed.known["new"], plans["plan 1"])
        if cut < head:
            assert len(resumed.known) == 1


def test_another_key_starts_a_new_journal(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    Journal.open(path, "k").add("plan", SampleLosses(np.ones(2), None))
    before = path.read_bytes()
    assert set(Journal.open(path, "k").known) == {"plan"}
    assert path.read_bytes() == before, "opening it again writes nothing"
    assert Journal.open(path, "other").known == {}
    assert Journal.open(path, "k").known == {}


@pytest.mark.parametrize("line", ["[]", "3", '"plan"', "{}", '{"plan": "a", "losses": "b"}', '{"plan": 1'])
def test_lines_that_are_something_else_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.journal"
    Journal.open(path, "k").add("plan", SampleLosses(np.ones(2), None))
    with open(path, "a") as stream:
        stream.write(line + "\n")
    assert set(Journal.open(path, "k").known) == {"plan"}


def test_a_journal_in_memory_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal.open(None, "k")
    journal.add("plan", SampleLosses(np.ones(2), None))
    assert set(journal.known) == {"plan"}
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(MpqError, match=r"cannot use the journal .*none.a\.journal"):
        Journal.open(tmp_path / "none" / "a.journal", "k")
    with pytest.raises(MpqError, match="cannot use the journal"):
        Journal.open(tmp_path, "k")
    binary = tmp_path / "b.journal"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(MpqError, match=r"cannot use the journal .*b\.journal"):
        Journal.open(binary, "k")
