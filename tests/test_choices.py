"""What choices cost against the packages that they become, and which choices operators have."""

from __future__ import annotations

import numpy as np
import pytest
from small_networks import Noise, branches, curves, prepare, prepared, tokens
from tvm import IRModule

from tvm_mpq.build import constant_bytes
from tvm_mpq.compiler import compile_model
from tvm_mpq.cost.modelled import model_costs
from tvm_mpq.dataset.dataset import Dataset
from tvm_mpq.files import sha256
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.plan_weights import PlanWeights
from tvm_mpq.precision import FP32, W8A8, Precision
from tvm_mpq.quantization.rounding import round_to_nearest
from tvm_mpq.sample import model_path
from tvm_mpq.search.candidates import (
    ROUNDED_KINDS,
    Candidates,
    candidate_keys,
    candidate_statistics,
    operator_weights,
    round_candidates,
)
from tvm_mpq.search.choices import ChoiceSpace, loss_estimates
from tvm_mpq.search.goal import LATENCY, LOSS, STORAGE
from tvm_mpq.sensitivity.table import Sensitivity, SensitivityTable
from tvm_mpq.target import host_target, load_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline

PRECISIONS = tuple(map(Precision.parse, ("w8a8", "w5a8", "w4a8", "w4g32a8", "w2g8a8")))


def nearest(mod: IRModule, precisions: tuple[Precision, ...] = PRECISIONS) -> Candidates:
    """Candidates that need no samples."""
    weights = operator_weights(mod)
    kinds = {operator.name: operator.kind for operator in operators(mod)}
    found = {}
    for name, text in candidate_keys(mod, precisions):
        precision = Precision.parse(text)
        paired = kinds[name] != "depthwise_conv2d"
        found[name, text] = round_to_nearest(
            weights[name], precision.weight_bits, precision.group, name, paired
        )
    return Candidates(found, {key: np.zeros(len(value.codes), np.float32) for key, value in found.items()})


def random_choices(space: ChoiceSpace, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.flatnonzero(row)) for row in space.allowed], np.int64)


@pytest.fixture(scope="module")
def sample() -> tuple[IRModule, TensorRanges, Candidates]:
    """The sample network, ranges that hold for no data, and candidates rounded to nearest."""
    mod = import_onnx(model_path())
    names = [operator.name for operator in operators(mod)]
    ranges = TensorRanges(
        {spec.name: (-1.0, 1.0) for spec in io_specs(mod)[0]}, dict.fromkeys(names, (-4.0, 4.0))
    )
    return mod, ranges, nearest(mod)


@pytest.mark.parametrize("floats", [False, True])
def test_the_sum_of_stored_bytes_is_that_of_the_package(
    sample: tuple[IRModule, TensorRanges, Candidates], floats: bool
) -> None:
    from tvm_mpq.build import stored_weights

    mod, ranges, candidates = sample
    space = ChoiceSpace.of(mod, (*PRECISIONS, FP32) if floats else PRECISIONS, candidates)
    # Tiles of AMX pad channels to sixteen, which the arrays do not know: at most a few kB, but of a small network.
    instruction = {"amx": "avx512bf16"}.get(host_target().instruction, host_target().instruction)
    sums = []
    for seed in range(4):
        choices = random_choices(space, seed)
        plan = space.plan(choices)
        weights, biases = candidates.of(plan)
        pipeline = Pipeline(plan, ranges, instruction, weights=weights, biases=biases)
        exact = stored_weights(pipeline.lower(pipeline.annotate(mod)))
        total = float(space.storage[np.arange(len(choices)), choices].sum()) + space.fixed_bytes
        sums.append((exact, total))
    # Conversions, zero-points and tables are not in the arrays.
    assert all(-300 < exact - total < 3000 for exact, total in sums), sums
    differences = [exact - total for exact, total in sums]
    if not floats:
        assert max(differences) - min(differences) < 600, sums


def test_stored_bytes_are_those_of_a_package_file(sample: tuple[IRModule, TensorRanges, Candidates]) -> None:
    mod, ranges, candidates = sample
    space = ChoiceSpace.of(mod, PRECISIONS, candidates)
    choices = random_choices(space, 9)
    plan = space.plan(choices)
    origin = {"observer": "minmax", "samples": 1, "seed": 0, "sha256": "0" * 64}
    weights = PlanWeights(
        sha256(model_path().read_bytes()), ranges, *candidates.of(plan), scales={}, origin=origin
    )
    package = compile_model(model_path(), plan=plan, weights=weights, baseline=False)
    total = float(space.storage[np.arange(len(choices)), choices].sum()) + space.fixed_bytes
    assert -300 < package.metadata.storage.weights - total < 3000
    assert package.metadata.storage.weights_fp32 == constant_bytes(mod)


def test_fp32_costs_what_the_network_has(sample: tuple[IRModule, TensorRanges, Candidates]) -> None:
    mod, _, candidates = sample
    space = ChoiceSpace.of(mod, (W8A8, FP32), candidates)
    everywhere = space.uniform(FP32)
    rows = np.arange(len(everywhere))
    assert space.storage[rows, everywhere].sum() + space.fixed_bytes == constant_bytes(mod)


def test_who_has_which_choices() -> None:
    network = prepared(branches)
    kinds = {operator.name: operator.kind for operator in operators(network.mod)}
    space = ChoiceSpace.of(network.mod, PRECISIONS, nearest(network.mod))
    assert space.precisions == (*PRECISIONS, FP32)
    possible = {
        name: {str(p) for p, allowed in zip(space.precisions, row, strict=True) if allowed}
        for name, row in zip(space.names, space.allowed, strict=True)
    }
    everything = {str(precision) for precision in PRECISIONS}
    for name, kind in kinds.items():
        if kind == "depthwise_conv2d":
            assert possible[name] == {"w8a8", "w5a8", "w4a8"}
        elif kind in ROUNDED_KINDS:
            assert possible[name] == everything, "no float unless it is named"
        elif kind == "reshape":
            assert possible[name] == {"w8a8"}, "what only moves has no choice"
        elif kind == "softmax":
            assert possible[name] == {"fp32"}
        else:
            assert possible[name] == {"w8a8", "fp32"}, kind
    assert {"depthwise_conv2d", "add", "softmax", "concat", "reshape"} <= set(kinds.values())
    named = ChoiceSpace.of(network.mod, (*PRECISIONS, FP32), nearest(network.mod))
    assert named.allowed[:, -1].sum() == sum(kind != "reshape" for kind in kinds.values())


@pytest.mark.parametrize("make", [branches, tokens, curves])
def test_operators_without_weights_take_no_bytes(make) -> None:
    mod = prepared(make).mod
    space = ChoiceSpace.of(mod, PRECISIONS, nearest(mod))
    for row, operator in enumerate(operators(mod)):
        bare = operator.kind not in ROUNDED_KINDS
        assert (space.storage[row, space.allowed[row]] == 0).all() == bare


def test_plans_and_choices_go_there_and_back() -> None:
    mod = prepared(branches).mod
    space = ChoiceSpace.of(mod, PRECISIONS, nearest(mod))
    for seed in range(5):
        choices = random_choices(space, seed)
        np.testing.assert_array_equal(space.choices(space.plan(choices)), choices)
    kinds = {operator.name: operator.kind for operator in operators(mod)}
    groups = space.plan(space.uniform(Precision.parse("w4g32a8")))
    assert {str(groups[name]) for name, kind in kinds.items() if kind == "depthwise_conv2d"} == {"w8a8"}
    assert {str(groups[name]) for name, kind in kinds.items() if kind == "matmul"} == {"w4g32a8"}


def test_eight_bits_need_not_be_a_candidate() -> None:
    mod = prepared(branches).mod
    low = tuple(map(Precision.parse, ("w5a8", "w4a8")))
    space = ChoiceSpace.of(mod, low, nearest(mod, low))
    for precision in (W8A8, *low):
        choices = space.uniform(precision)
        assert space.allowed[np.arange(len(choices)), choices].all()


def test_the_problem_has_the_table_s_latencies() -> None:
    mod = prepared(branches).mod
    costs = model_costs(mod, load_target("x86-64-v3"), (*PRECISIONS, FP32))
    space = ChoiceSpace.of(mod, (*PRECISIONS, FP32), nearest(mod))
    problem = space.problem(np.zeros(space.allowed.shape), costs)
    for seed in range(5):
        choices = random_choices(space, seed)
        totals = problem.totals(choices)
        predicted = costs.predict(space.plan(choices))
        # A tensor that two readers convert is counted twice by the problem.
        assert totals[LATENCY] == pytest.approx(predicted, rel=0.3)
        assert totals[LATENCY] >= predicted * (1 - 1e-9)
        assert totals[LOSS] == 0.0
        assert totals[STORAGE] == space.storage[np.arange(len(choices)), choices].sum()


def test_estimates_are_the_table_s_with_luck_taken_out() -> None:
    mod = prepared(branches).mod
    space = ChoiceSpace.of(mod, PRECISIONS, nearest(mod))

    def entry(mean: float, stderr: float) -> Sensitivity:
        return Sensitivity(mean, stderr, 0.0, mean, 0.25, 0.1, 9)

    entries = {
        ("stem", "w4a8"): entry(1.0, 0.01),
        ("stem", "w5a8"): entry(-1.0, 10.0),
        ("stem", "w8a8"): entry(0.5, float("inf")),
        ("dw", "w4g32a8"): entry(1.0, 0.01),
    }
    names = dict(zip(space.names, range(len(space.names)), strict=True))
    assert "stem" in names
    table = SensitivityTable("m", "d", "mse", 0.0, (), entries)
    mean, error, second = loss_estimates(space, table)
    columns = {str(precision): column for column, precision in enumerate(space.precisions)}
    stem = names["stem"]
    assert mean[stem, columns["w4a8"]] == pytest.approx(1.25, abs=0.01)
    assert mean[stem, columns["w5a8"]] == 0.25, "ten times its error is no gain"
    assert error[stem, columns["w5a8"]] == 0.0, "what does not count has no error"
    assert np.isfinite(error).all()
    assert np.count_nonzero(mean) == 3, "groups of a depthwise convolution are no choice"
    assert np.count_nonzero(second) == 3


def test_candidates_are_rounded_by_their_inputs_and_8_bits_to_nearest() -> None:
    network = prepare(branches())
    precisions = tuple(map(Precision.parse, ("w8a8", "w3a8", "w3g4a8")))
    data = Dataset(Noise(network.mod, 12))
    keys = candidate_keys(network.mod, precisions)
    statistics = candidate_statistics(network.mod, keys, network.ranges, data, host_target())
    found, again = (round_candidates(network.mod, keys, statistics) for _ in range(2))
    plain = nearest(network.mod, precisions)
    assert found.weights.keys() == found.biases.keys() == plain.weights.keys()
    assert ("dw", "w3a8") in found.weights
    assert ("dw", "w3g4a8") not in found.weights
    for key, value in found.weights.items():
        precision = Precision.parse(key[1])
        assert (value.bits, value.group) == (precision.weight_bits, precision.group)
        np.testing.assert_array_equal(value.codes, again.weights[key].codes)
        np.testing.assert_array_equal(found.biases[key], again.biases[key])
        same = np.array_equal(value.codes, plain.weights[key].codes)
        assert same if key[1] == "w8a8" else True
    assert any(
        not np.array_equal(value.codes, plain.weights[key].codes) for key, value in found.weights.items()
    )


def test_the_candidates_of_a_plan_are_those_of_its_precisions() -> None:
    network = prepared(branches)
    candidates = nearest(network.mod)
    plan = PrecisionPlan({**network.plan("w4a8").operators, "stem": FP32})
    weights, biases = candidates.of(plan)
    assert weights.keys() == biases.keys() == operator_weights(network.mod).keys() - {"stem"}
    assert {(value.bits, value.group) for value in weights.values()} == {(4, 0)}
