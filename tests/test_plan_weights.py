"""A plan with its weights on disk: it comes back whole, or the one line says what is wrong with it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_mpq import plan_weights as plan_weights_module
from tvm_mpq.errors import MpqError, MpqWarning
from tvm_mpq.files import sha256, write_beside
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.plan_weights import PlanWeights, load_plan, save_plan
from tvm_mpq.precision import Precision
from tvm_mpq.quantization.groups import Grouping
from tvm_mpq.quantization.weights import QuantizedWeights, largest_code, largest_multiplier
from tvm_mpq.quantization.weights_file import UNREADABLE, read_npz, unpack_weights, write_npz
from tvm_mpq.search.candidate_store import load_candidates, save_candidates
from tvm_mpq.search.candidates import Candidates
from tvm_mpq.transform.assign_grids import TensorRanges


@st.composite
def quantized(draw: st.DrawFn) -> QuantizedWeights:
    shape = tuple(draw(st.integers(1, 4)) for _ in range(4))
    bits, group = draw(st.integers(2, 8)), draw(st.sampled_from([0, 2, 32]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    limit = largest_code(bits)
    codes = rng.integers(-limit, limit + 1, shape).astype(np.int8)
    scale = rng.uniform(1e-6, 1.0, shape[0]).astype(np.float32)
    multiplier = None
    if group:
        count = Grouping.of(shape, group).count
        multiplier = rng.integers(1, largest_multiplier(bits) + 1, (shape[0], count)).astype(np.uint8)
    return QuantizedWeights(codes, scale, bits, multiplier, group)


finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
ranges = st.dictionaries(names, st.tuples(finite, finite), max_size=3)
biases = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4)
plan_weights = st.builds(
    PlanWeights,
    model_sha256=st.just("a" * 64),
    ranges=st.builds(TensorRanges, ranges, ranges),
    weights=st.dictionaries(names, quantized(), max_size=3),
    biases=st.dictionaries(names, biases.map(lambda b: np.array(b, np.float32)), max_size=3),
    scales=st.dictionaries(names, finite, max_size=2),
    factors=st.dictionaries(names, biases.map(lambda b: np.array(b, np.float32)), max_size=2),
    origin=st.just({"observer": "minmax", "samples": 3, "seed": 0, "sha256": "b"}),
)


def assert_same_weights(found: QuantizedWeights, expected: QuantizedWeights) -> None:
    assert (found.bits, found.group) == (expected.bits, expected.group)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_array_equal(found.int8, expected.int8)
    assert found.codes.dtype == np.int8
    assert found.scale.dtype == np.float32


@settings(deadline=None, max_examples=60)
@given(plan_weights)
def test_weights_come_back_as_they_were(weights: PlanWeights) -> None:
    found = PlanWeights.from_bytes(weights.to_bytes(), "w")
    assert found.ranges == weights.ranges
    assert (found.model_sha256, dict(found.origin)) == (weights.model_sha256, weights.origin)
    assert found.scales == weights.scales
    assert {k: v.tolist() for k, v in found.factors.items()} == {
        k: v.tolist() for k, v in weights.factors.items()
    }
    assert found.weights.keys() == weights.weights.keys()
    for name, value in weights.weights.items():
        assert_same_weights(found.weights[name], value)
    assert found.biases.keys() == weights.biases.keys()
    for name, bias in weights.biases.items():
        np.testing.assert_array_equal(found.biases[name], bias)


def example() -> tuple[PrecisionPlan, PlanWeights]:
    rng = np.random.default_rng(0)
    plan = PrecisionPlan({name: Precision.parse(p) for name, p in (("a", "w4a8"), ("b", "w4g2a8"))})
    codes = [rng.integers(-7, 8, (3, 4, 1, 1)).astype(np.int8) for _ in range(2)]
    scale = np.ones(3, np.float32)
    weights = {
        "a": QuantizedWeights(codes[0], scale, 4),
        "b": QuantizedWeights(codes[1], scale, 4, np.full((3, 2), 2, np.uint8), 2),
    }
    changes = {"a": rng.normal(size=3).astype(np.float32)}
    limits = TensorRanges({"x": (-1.0, 1.0)}, {"a": (0.0, 2.0), "b": (0.0, 3.0)})
    origin = {"observer": "minmax", "samples": 3, "seed": 0, "sha256": "c" * 64}
    return plan, PlanWeights("m" * 64, limits, weights, changes, {"b": 1.5}, {}, origin)


def weights_path(plan: Path) -> Path:
    """The file that a plan names."""
    return plan.with_name(json.loads(plan.read_text())["weights"]["file"])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    save_plan(path, *example())
    return path


def test_a_plan_and_its_weights_come_back_together(saved: Path) -> None:
    plan, weights = example()
    found_plan, found = load_plan(saved)
    assert found_plan == plan == PrecisionPlan.load(saved)
    assert found is not None
    for name, value in weights.weights.items():
        assert_same_weights(found.weights[name], value)
    assert set(saved.parent.iterdir()) == {saved, weights_path(saved)}
    assert weights_path(saved).read_bytes() == weights.to_bytes(), "the same weights are the same bytes"


def test_a_plan_is_whole_whenever_saving_another_is_interrupted(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, weights = example()
    other = replace(weights, scales={"b": 2.0})
    (saved.parent / "plan.b.weights.npz").touch()

    def interrupted(path: Path, content: bytes) -> None:
        if path == saved:
            raise KeyboardInterrupt
        write_beside(path, content)

    monkeypatch.setattr(plan_weights_module, "write_beside", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_plan(saved, plan, other)
    found = load_plan(saved)[1]
    assert found is not None
    assert found.scales == {"b": 1.5}
    monkeypatch.undo()
    save_plan(saved, plan, other)
    found = load_plan(saved)[1]
    assert found is not None
    assert found.scales == {"b": 2.0}
    left = {path.name for path in saved.parent.iterdir()}
    assert left == {"plan.json", weights_path(saved).name, "plan.b.weights.npz"}


def test_a_plan_can_be_moved_with_its_weights(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for path in (saved, weights_path(saved)):
        (other / path.name).write_bytes(path.read_bytes())
        path.unlink()
    assert load_plan(other / "plan.json")[1] is not None


def test_a_plan_without_weights_has_none(tmp_path: Path) -> None:
    example()[0].save(tmp_path / "p.json")
    assert load_plan(tmp_path / "p.json")[1] is None


def test_missing_damaged_and_other_weights_are_named(saved: Path) -> None:
    beside = weights_path(saved)
    content = beside.read_bytes()
    beside.unlink()
    with pytest.raises(
        MpqError, match=r"cannot read .*plan\.[0-9a-f]{8}\.weights\.npz, the weights of .*plan\.json: No such"
    ):
        load_plan(saved)
    altered = bytearray(content)
    altered[len(content) // 2] ^= 1
    for wrong in (content[:-1], bytes(altered), b"", content + b"\0"):
        beside.write_bytes(wrong)
        with pytest.raises(MpqError, match="is damaged or of another plan: its SHA-256 is not what"):
            load_plan(saved)
    beside.write_bytes(content)
    assert load_plan(saved)[1] is not None


def rewritten(saved: Path, reference: object) -> None:
    raw = json.loads(saved.read_text())
    raw["weights"] = reference
    saved.write_text(json.dumps(raw))


@pytest.mark.parametrize("name", ["../w.npz", "/etc/passwd", "a/w.npz", "./w.npz", "..", "", "a\0b", "."])
def test_weights_outside_the_folder_are_not_read(saved: Path, name: str) -> None:
    (saved.parent.parent / "w.npz").write_bytes(weights_path(saved).read_bytes())
    rewritten(saved, {"file": name, "sha256": sha256(weights_path(saved).read_bytes())})
    with pytest.raises(MpqError, match=r"must be beside the plan|cannot read") as caught:
        load_plan(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reference", [3, "plan.weights.npz", [], {}, {"file": "plan.weights.npz"}])
def test_references_to_weights_that_are_none_are_named(saved: Path, reference: object) -> None:
    rewritten(saved, reference)
    with pytest.raises(MpqError, match='"weights" needs "file" and "sha256"'):
        load_plan(saved)


def head_of(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    return read_npz(content)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 1},
        {"factors": 3},
        {"factors": ["a"]},
        {"inputs": []},
        {"inputs": {"x": [1]}},
        {"outputs": {"x": ["low", "high"]}},
        {"scales": [1]},
        {"origin": 3},
        {"operators": []},
        {"operators": {"a": {}}},
        {"operators": {"a": {"key": "0", "bits": 2, "group": 0}}},
        {"operators": {"a": {"key": "9", "bits": 4, "group": 0}}},
    ],
)
def test_contents_that_are_no_weights_are_one_line(change: dict[str, object]) -> None:
    arrays, head = head_of(example()[1].to_bytes())
    with pytest.raises(MpqError, match=r"^w\.npz are not a plan's weights: ") as caught:
        PlanWeights.from_bytes(write_npz(arrays, {**head, **change}), "w.npz")
    assert "\n" not in str(caught.value)


def test_files_that_are_something_else_are_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(3))
    np.savez(tmp_path / "two.npz", head=np.frombuffer(b"[1, 2]", np.uint8))
    np.savez(tmp_path / "three.npz", head=np.frombuffer(b"{", np.uint8))
    for name in ("one.npy", "two.npz", "three.npz"):
        with pytest.raises(MpqError, match="are not a plan's weights"):
            PlanWeights.from_bytes((tmp_path / name).read_bytes(), name)
    for content in (b"", b"text", b"PK\x03\x04"):
        with pytest.raises(MpqError, match="are not a plan's weights"):
            PlanWeights.from_bytes(content, "w")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sprung"),))  # type: ignore[return-value]


def test_no_pickle_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays, head = head_of(example()[1].to_bytes())
    named = {**arrays, "head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
    for place in ("0.codes", "head", "extra"):
        np.savez(tmp_path / "w.npz", **{**named, place: np.array([Trap()], object)})
        with pytest.raises(MpqError, match="Object arrays cannot be loaded"):
            PlanWeights.from_bytes((tmp_path / "w.npz").read_bytes(), "w")
    assert not Path("sprung").exists()


def test_an_operator_that_was_edited_is_left_to_rounding_and_named() -> None:
    plan, weights = example()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weights.fitting(plan).keys() == {"a", "b"}
        float_b = PrecisionPlan({**plan.operators, "b": Precision.parse("fp32")})
        assert weights.fitting(float_b).keys() == {"a"}
    for edited in ("w5a8", "w4a8", "w4g32a8"):
        other = PrecisionPlan({**plan.operators, "b": Precision.parse(edited)})
        with pytest.warns(MpqWarning, match="1 operators have another precision .* nearest: b$"):
            assert weights.fitting(other).keys() == {"a"}


def test_no_flipped_bit_of_a_file_of_candidates_raises(tmp_path: Path) -> None:
    """The cache has no hash: whatever is damaged there is rounded again, or reads as it was."""
    plan, weights = example()
    keys = {name: (name, str(precision)) for name, precision in plan.operators.items()}
    candidates = Candidates(
        {keys[name]: value for name, value in weights.weights.items()},
        {keys[name]: value for name, value in weights.biases.items()},
    )
    save_candidates(tmp_path, "k" * 64, candidates)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    lost = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        found = load_candidates(tmp_path, "k" * 64)
        if found is None:
            lost += 1
            continue
        assert found.weights.keys() <= candidates.weights.keys()
        for key, value in found.weights.items():
            assert_same_weights(value, candidates.weights[key])
    assert lost > len(content) // 3
    path.write_bytes(content)
    found = load_candidates(tmp_path, "k" * 64)
    assert found is not None
    assert found.weights.keys() == candidates.weights.keys()
    assert found.biases.keys() == candidates.biases.keys()
    assert load_candidates(tmp_path, "l" * 64) is None
    assert load_candidates(tmp_path / "none", "k" * 64) is None


@settings(deadline=None, max_examples=40)
@given(names, names)
def test_operators_of_any_name_come_back_from_the_store(
    tmp_path_factory: pytest.TempPathFactory, first: str, second: str
) -> None:
    _, weights = example()
    found = {(first, "w4a8"): weights.weights["a"], (second, "w4g2a8"): weights.weights["b"]}
    folder = tmp_path_factory.mktemp("store")
    save_candidates(folder, "k", Candidates(found, {}))
    loaded = load_candidates(folder, "k")
    assert loaded is not None
    assert loaded.weights.keys() == found.keys()


def test_what_is_unreadable_is_what_reading_raises() -> None:
    with pytest.raises(UNREADABLE):
        unpack_weights({}, {"a": {"key": "0", "bits": 4, "group": 0}})
