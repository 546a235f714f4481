"""What a user may ask of a search, and that anything else is answered in one line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_mpq.errors import MpqError
from tvm_mpq.search.goal import LATENCY, LOSS, STORAGE, Goal, Limit

SCALES = {LATENCY: {"s": 1.0, "ms": 1e-3, "us": 1e-6}, STORAGE: {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}}
UNITS = [(metric, unit) for metric, units in SCALES.items() for unit in units]

values = st.floats(min_value=1e-250, max_value=1e250)


@given(st.sampled_from(UNITS), values, st.sampled_from(["", " ", "  "]))
def test_an_absolute_limit_is_in_seconds_or_bytes(kind: tuple[str, str], value: float, between: str) -> None:
    metric, unit = kind
    limit = Limit.parse("--max", metric, f" {value!r}{between}{unit} ")
    assert not limit.relative
    assert limit.of(7.0) == limit.of(9.0) == value * SCALES[metric][unit]


@given(st.sampled_from([LATENCY, STORAGE]), values)
def test_a_relative_limit_is_a_multiple_of_fp32(metric: str, value: float) -> None:
    limit = Limit.parse("--max", metric, f"{value!r}x")
    assert limit.relative
    assert limit.of(3.0) == value * 3.0


@given(st.sampled_from([LATENCY, STORAGE]), st.text() | st.from_regex(r"[-+.0-9eE]{0,9} ?[a-zA-Z]{0,3}"))
def test_any_other_text_is_one_clear_line(metric: str, text: str) -> None:
    said = ""
    try:
        value = Limit.parse("--max-this", metric, text).value
    except MpqError as error:
        said, value = str(error), 1.0
    assert 0 < value < math.inf
    assert not said or said.startswith("--max-this needs a multiple of fp32's such as 0.2x, or a number in ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (STORAGE, "0x"),
        (STORAGE, "-1MB"),
        (STORAGE, "1"),
        (STORAGE, "1ms"),
        (STORAGE, "1mb"),
        (STORAGE, "nanx"),
        (STORAGE, "1e999x"),
        (STORAGE, "1e308GB"),
        (LATENCY, "1MB"),
        (LATENCY, "8 m s"),
        (LATENCY, ""),
        (LATENCY, "infs"),
        (LATENCY, "٣ms"),
    ],
)
def test_limits_that_mean_nothing_are_refused(metric: str, text: str) -> None:
    with pytest.raises(MpqError, match="needs a multiple of fp32's"):
        Limit.parse("--max", metric, text)


def test_units_of_the_other_metric_are_not_offered() -> None:
    with pytest.raises(MpqError, match="a number in s, ms, us such as 8ms, not '8MB'"):
        Limit.parse("--max-latency", LATENCY, "8MB")


@pytest.mark.parametrize("metric", [LATENCY, STORAGE])
def test_less_of_everything_needs_a_limit_on_the_loss(metric: str) -> None:
    with pytest.raises(MpqError, match=f"minimizing {metric} needs a limit on the loss"):
        Goal(metric)
    assert Goal(metric, max_loss_increase=0.0).minimize == metric


def test_goals_that_mean_nothing_are_refused() -> None:
    with pytest.raises(MpqError, match="cannot minimize 'speed': use loss, latency, storage"):
        Goal("speed")
    for value in (math.nan, math.inf):
        with pytest.raises(MpqError, match="--max-loss-increase needs a number"):
            Goal(LOSS, max_loss_increase=value)


def test_only_limits_that_were_given_limit() -> None:
    fp32 = {LATENCY: 2.0, STORAGE: 4e6}
    assert Goal().limits(fp32) == {}
    goal = Goal(max_latency=Limit(0.5, True), max_storage=Limit(1e6, False))
    assert goal.limits(fp32) == {LATENCY: 1.0, STORAGE: 1e6}
