"""The table that the analysis writes and the search reads."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_mpq.errors import MpqError
from tvm_mpq.sensitivity.table import OperatorInfo, Sensitivity, SensitivityTable

numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)
entries = st.builds(
    Sensitivity,
    mean=numbers,
    stderr=positive | st.just(math.inf),
    input_part=numbers,
    weight_part=numbers,
    second_order=positive,
    noise=positive,
    samples=st.integers(1, 10**6),
    measured=st.none() | numbers,
    measured_stderr=st.none() | positive,
)
names = st.text(min_size=1, max_size=5)
tables = st.builds(
    SensitivityTable,
    model_sha256=st.just("a" * 64),
    data_sha256=st.just("b" * 64),
    loss=names,
    base_loss=numbers,
    operators=st.lists(st.builds(OperatorInfo, names, names, st.integers(0, 9))).map(tuple),
    entries=st.dictionaries(st.tuples(names, st.sampled_from(["w8a8", "w4g32a8"])), entries, max_size=5),
)


@given(tables)
def test_a_table_survives_its_file(table: SensitivityTable) -> None:
    text = table.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert SensitivityTable.from_json(text) == table


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not a sensitivity table"),
        ("[]", "is not a sensitivity table"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "'entries' is missing"),
        ('{"schema_version": 1, "entries": [{"operator": "a"}]}', "'stderr' is missing"),
    ],
)
def test_what_is_no_table_is_named(text: str, said: str) -> None:
    with pytest.raises(MpqError, match=f"s.json.*{said}"):
        SensitivityTable.from_json(text, "s.json")


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(MpqError, match=r"cannot read the sensitivity table .*none\.json"):
        SensitivityTable.load(tmp_path / "none.json")
