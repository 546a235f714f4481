"""What the passes make of networks: integer regions without float, grids, mixed plans, and odd corners."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from frontend_networks import network, run_reference, weights
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_networks import (
    Network,
    branches,
    curves,
    gates,
    image_network,
    mixed,
    node,
    prepare,
    prepared,
    tokens,
)
from tvm import relax

from tvm_mpq import sample
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import W8A8
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.target import host_target
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import AnnotatePrecision
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.fused_additions import fused_additions
from tvm_mpq.transform.lower_operators import LowerOperators
from tvm_mpq.transform.pipeline import Pipeline

LITE0 = Path(__file__).parents[1] / ".." / "shared" / "models" / "efficientnet-lite0.onnx"


def fashion() -> onnx.ModelProto:
    return onnx.load(sample.model_path())


def lite0() -> onnx.ModelProto:
    if not LITE0.exists():
        pytest.skip(f"{LITE0} is not there")
    return onnx.load(LITE0)


def unit_ranges(mod: tvm.IRModule) -> TensorRanges:
    """Where the numbers do not matter: [-1, 1] for every tensor."""
    inputs = dict.fromkeys(attr.names(mod["main"], attr.INPUTS), (-1.0, 1.0))
    names = [attr.text(function, attr.OPERATOR) for _, function, _ in attr.calls(mod)]
    return TensorRanges(inputs, dict.fromkeys(names, (-1.0, 1.0)))


def kernels_of(lowered: tvm.IRModule) -> list[tuple[relax.Var, list[relax.Var]]]:
    """(result, variables read) of every binding of ``main`` that makes a tensor, in order."""
    found = []
    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call):
                found.append((binding.var, list(relax.analysis.free_vars(binding.value))))
    return found


def float_gaps(lowered: tvm.IRModule) -> list[str]:
    """The tensors inside an 8-bit region that are not uint8.

    Inside is what is computed from a uint8 tensor, and from which a uint8 tensor is computed.
    """
    steps = kernels_of(lowered)
    below: set[relax.Var] = set()
    for result, sources in steps:
        if any(source in below or source.ty.dtype == "uint8" for source in sources):
            below.add(result)
    above: set[relax.Var] = set()
    for result, sources in reversed(steps):
        if result in above or result.ty.dtype == "uint8":
            above.update(sources)
    return [result.name for result, _ in steps if result in below & above and result.ty.dtype != "uint8"]


def records(annotated: tvm.IRModule) -> dict[str, dict[str, str]]:
    """Operator name → its attributes without the prefix, as text."""
    return {
        attr.text(function, attr.OPERATOR): {
            str(key).removeprefix("mpq."): str(value) for key, value in function.attrs.items()
        }
        for _, function, _ in attr.calls(annotated)
    }


def grid_of(annotated: tvm.IRModule, name: str) -> Grid:
    record = records(annotated)[name]
    return Grid(float(record["scale"]), int(record["zero_point"]))


def lowered_only(network: Network, annotated: tvm.IRModule) -> tvm.IRModule:
    return LowerOperators(host_target().instruction)(annotated)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.reshape(-1).astype(float), b.reshape(-1).astype(float))[0, 1])


# No float inside 8-bit regions


@pytest.mark.parametrize("make", [mixed, tokens, branches, curves, gates, fashion, lite0])
def test_no_float_between_8_bit_operators(make) -> None:
    model = make()
    mod = import_onnx(model, {"input": (1, 3, 224, 224)} if make is lite0 else None)
    names = [attr.text(function, attr.OPERATOR) for _, function, _ in attr.calls(mod)]
    network = Network(mod, unit_ranges(mod))
    annotated = network.annotate()
    lowered = lowered_only(network, annotated)
    assert float_gaps(lowered) == []
    executed = {name: record["precision"] for name, record in records(annotated).items()}
    assert list(executed) == names
    assert {name for name, precision in executed.items() if precision != "w8a8"} <= {
        record for record, values in records(annotated).items() if values["kind"] == "softmax"
    }
    uint8 = [result for result, _ in kernels_of(lowered) if result.ty.dtype == "uint8"]
    sums = fused_additions(annotated)
    assert len(uint8) >= len(names) - len(sums) - 3, "nearly every operator makes a uint8 tensor"


@pytest.mark.parametrize("name", ["dw", "residual", "max", "avg", "cat", "gap"])
def test_the_check_finds_a_float_operator_between_8_bit_ones(name: str) -> None:
    network = prepared(mixed)
    annotated = network.annotate(network.plan(others={name: "fp32"}))
    assert float_gaps(lowered_only(network, annotated)) != []


# Annotations and grids


def test_every_operator_carries_its_name_and_precisions() -> None:
    network = prepared(branches)
    plan = network.plan(others={"dw": "fp32", "cat": "fp32"})
    annotated = AnnotatePrecision(plan)(network.mod)
    found = records(annotated)
    assert list(found) == network.names
    for name, record in found.items():
        assert record["asked"] == str(plan[name])
        assert record["precision"] == ("fp32" if name in ("dw", "cat", "y") else "w8a8")
    assert found["y"]["reason"] == "softmax has no integer kernel"
    assert all(not record["reason"] for name, record in found.items() if name != "y")
    assert 'mpq.precision": "w8a8"' in annotated.script()


def test_max_pools_and_moves_share_their_inputs_grid() -> None:
    network = prepared(mixed)
    annotated = network.annotate()
    assert grid_of(annotated, "max") == grid_of(annotated, "residual")
    assert grid_of(annotated, "flat") == grid_of(annotated, "gap")
    assert grid_of(annotated, "avg") == Grid.from_range(*network.ranges.operators["avg"])
    network = prepared(tokens)
    annotated = network.annotate()
    for moved, source in (("turned", "up"), ("back", "across"), ("image", "joined"), ("tokens", "conv")):
        assert grid_of(annotated, moved) == grid_of(annotated, source)


def test_accumulators_leave_as_float_only_where_no_8_bit_operator_reads_them() -> None:
    network = prepared(branches)
    stored = {name: record["stored"] for name, record in records(network.annotate()).items()}
    assert stored["logits"] == "float32"
    assert stored["y"] == "float32"
    assert {name for name, dtype in stored.items() if dtype == "uint8"} == set(stored) - {"logits", "y"}
    # Its one reader is in float, so the convolution does not round its result to 8 bits.
    plan = network.plan(others={"dw": "fp32", "residual": "fp32"})
    found = records(network.annotate(plan))
    assert (found["stem"]["stored"], found["stem"]["precision"]) == ("float32", "w8a8")
    assert "scale" not in found["stem"]
    # A float operator's result that an 8-bit one reads stays float and has the grid of the edge.
    assert found["dw"]["stored"] == "float32"
    assert grid_of(network.annotate(plan), "dw") == Grid.from_range(*network.ranges.operators["dw"])


def test_moves_follow_what_they_move() -> None:
    network = prepared(tokens)
    plan = network.plan(others={"up": "fp32", "back": "fp32"})
    found = records(network.annotate(plan))
    assert found["turned"]["stored"] == "float32"
    assert found["turned"]["precision"] == "fp32"
    assert found["turned"]["reason"] == "moves its input, which is stored in float32"
    assert found["back"]["precision"] == "w8a8"
    assert found["back"]["reason"] == "moves its input, which is stored in uint8"


def test_a_convolution_read_in_float_and_in_8_bits_is_stored_once() -> None:
    network = prepared(branches)
    plan = network.plan(others={"residual": "fp32"})
    annotated = network.annotate(plan)
    assert records(annotated)["stem"]["stored"] == "uint8"
    exact, mixed_up = (
        network.run(network.lower(network.annotate(each)), network.feeds())
        for each in (network.plan("fp32"), plan)
    )
    assert correlation(exact[1], mixed_up[1]) > 0.99


# Freely mixed plans


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_plan_builds_runs_and_stays_close_to_fp32(data: st.DataObject) -> None:
    make = data.draw(st.sampled_from([branches, mixed, tokens, curves, gates]), "network")
    network = prepared(make)
    choices = data.draw(
        st.lists(st.booleans(), min_size=len(network.names), max_size=len(network.names)), "w8a8"
    )
    others = {name: "w8a8" if chosen else "fp32" for name, chosen in zip(network.names, choices, strict=True)}
    found = network.run(network.lower(network.annotate(network.plan(others=others))), network.feeds())
    for ours, exact in zip(found, float_outputs(make), strict=True):
        assert ours.shape == exact.shape
        assert ours.dtype == np.float32
        assert correlation(ours, exact) > 0.98


@functools.cache
def float_outputs(make: Callable[[], onnx.ModelProto]) -> list[np.ndarray]:
    network = prepared(make)
    return network.run(network.lower(network.annotate(network.plan("fp32"))), network.feeds())


def test_dump_ir_writes_one_readable_file_a_pass(tmp_path: Path) -> None:
    network = prepared(branches)
    pipeline = dataclasses.replace(network.pipeline(network.plan()), dump=tmp_path / "new" / "ir")
    pipeline.lower(pipeline.annotate(network.mod))
    files = sorted((tmp_path / "new" / "ir").iterdir())
    assert [path.name for path in files] == [
        "1_AnnotatePrecision.py",
        "2_AssignGrids.py",
        "3_LowerOperators.py",
        "4_LiftWeights.py",
        "5_LegalizeOps.py",
        "6_ScheduleKernels.py",
    ]
    texts = [path.read_text() for path in files]
    assert all("def main" in text for text in texts)
    assert texts[0].count("mpq.precision") == len(network.names)
    assert texts[1].count("mpq.stored") == len(network.names)


# Corners


def w8a8_and_fp32(model: onnx.ModelProto, others: dict[str, str] | None = None):
    """(records, w8a8 outputs, fp32 outputs) of a network."""
    network = prepare(model)
    annotated = network.annotate(network.plan(others=others))
    feeds = network.feeds()
    return (
        records(annotated),
        network.run(network.lower(annotated), feeds),
        network.run(network.lower(network.annotate(network.plan("fp32"))), feeds),
    )


@pytest.mark.parametrize(
    ("op_type", "low", "high"),
    [("Conv", 1.0, 6.0), ("Conv", -6.0, 0.0), ("Add", -6.0, -1.0), ("MaxPool", 1.0, 6.0)],
)
def test_clips_that_shut_out_zero_are_operators_by_table(op_type: str, low: float, high: float) -> None:
    """No grid lies inside the clip, so that no operator could take it in as its saturation."""
    first = {
        "Conv": node("Conv", "c p", "op"),
        "Add": node("Add", "c x", "op"),
        "MaxPool": node("MaxPool", "c", "op", kernel_shape=[2, 2]),
    }[op_type]
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        first,
        node("Clip", "op low high", "clip"),
        node("Conv", "clip p", "y"),
    ]
    constants = {"low": np.float32(low), "high": np.float32(high)}
    found, ours, exact = w8a8_and_fp32(image_network(nodes, ["y", "clip"], **constants))
    assert found["clip"]["kind"] == "activation"
    assert {record["precision"] for record in found.values()} == {"w8a8"}
    half = 0.5001 * float(found["clip"]["scale"])
    assert low - half <= ours[1].min() <= ours[1].max() <= high + half
    assert np.abs(ours[1] - exact[1]).max() < 0.1


@pytest.mark.parametrize("last", ["Add", "MaxPool", "Concat", "AveragePool", "GlobalAveragePool", "Relu"])
def test_any_8_bit_operator_may_be_the_output(last: str) -> None:
    attributes = {
        "Concat": {"axis": 1},
        "MaxPool": {"kernel_shape": [2, 2]},
        "AveragePool": {"kernel_shape": [3, 3]},
    }
    inputs = "a b" if last in ("Add", "Concat") else "m" if last == "Relu" else "a"
    nodes = [node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Conv", "x p", "b")]
    if last == "Relu":
        nodes.append(node("MaxPool", "a", "m", kernel_shape=[2, 2]))
    found, ours, exact = w8a8_and_fp32(
        image_network([*nodes, node(last, inputs, "y", **attributes.get(last, {}))], ["y"])
    )
    assert found["y"]["precision"] == "w8a8"
    assert found["y"]["stored"] == "uint8"
    assert ours[0].shape == exact[0].shape
    assert correlation(ours[0], exact[0]) > 0.999


def test_an_input_read_in_both_precisions_and_an_output_read_on() -> None:
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
        node("Conv", "x p", "b"),
        node("Add", "a b", "both"),
        node("Conv", "both p", "y"),
    ]
    model = image_network(nodes, ["both", "y", "a"])
    found, ours, exact = w8a8_and_fp32(model, {"b": "fp32"})
    assert found["a"]["stored"] == "uint8"
    assert [correlation(o, e) > 0.999 for o, e in zip(ours, exact, strict=True)] == [True] * 3


def test_an_output_named_twice_and_an_input_as_output() -> None:
    nodes = [node("Conv", "x p", "a"), node("Identity", "a", "b"), node("Relu", "a", "c")]
    _, ours, exact = w8a8_and_fp32(image_network(nodes, ["a", "b", "c", "x"]))
    np.testing.assert_array_equal(ours[0], ours[1])
    np.testing.assert_array_equal(ours[3], exact[3])
    assert correlation(ours[0], exact[0]) > 0.999
    assert ours[2].min() >= 0


def test_one_tensor_added_to_itself_and_a_sum_of_one_element() -> None:
    nodes = [node("Conv", "x p", "a"), node("Add", "a a", "twice"), node("GlobalAveragePool", "twice", "y")]
    _, ours, exact = w8a8_and_fp32(image_network(nodes, ["y"]))
    assert correlation(ours[0], exact[0]) > 0.999
    model = network(
        [node("MatMul", "x w", "a"), node("Add", "a a", "y")], {"x": [1, 1]}, ["y"], {"w": weights(1, 1)}
    )
    _, ours, exact = w8a8_and_fp32(model)
    assert ours[0].shape == (1, 1)
    assert np.abs(ours[0] - exact[0]) < 0.1


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_matrix_multiplications_of_any_rank(rank: int) -> None:
    shape = [2, 3, 5, 12][4 - rank :] if rank > 2 else [2, 12]
    nodes = [
        node("MatMul", "x w", "a"),
        node("Relu", "a", "r"),
        node("MatMul", "r v", "y"),
    ]
    constants = {"w": weights(12, 9, seed=1, scale=0.3), "v": weights(9, 6, seed=2, scale=0.3)}
    found, ours, exact = w8a8_and_fp32(network(nodes, {"x": shape}, ["y"], constants))
    assert found["y"]["precision"] == "w8a8"
    assert ours[0].shape == (*shape[:-1], 6)
    assert correlation(ours[0], exact[0]) > 0.999


def test_a_dilated_average_pool() -> None:
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
        node("AveragePool", "a", "pool", kernel_shape=[2, 2], dilations=[2, 1], pads=[1, 0, 1, 1]),
        node("Conv", "pool p", "y"),
    ]
    model = image_network(nodes, ["y", "pool"])
    model.opset_import[0].version = 19
    found, ours, exact = w8a8_and_fp32(model)
    assert found["pool"]["precision"] == "w8a8"
    assert correlation(ours[0], exact[0]) > 0.999
    assert correlation(ours[1], exact[1]) > 0.999
    reference = run_reference(model, prepare(model).feeds())
    np.testing.assert_allclose(exact[1], reference[1], rtol=1e-4, atol=1e-5)


def test_integer_tensors_beside_8_bit_ones() -> None:
    """Indices are computed and joined in int64: no range is watched, no grid given, no 8-bit kernel used."""
    nodes = [
        node("ArgMax", "a", "best", axis=1, keepdims=1),
        node("ArgMin", "a", "worst", axis=1, keepdims=1),
        node("Concat", "best worst", "ends", axis=1),
    ]
    model = network(
        [node("MatMul", "x w", "a"), *nodes],
        {"x": [3, 8]},
        ["ends", "a"],
        {"w": weights(8, 5)},
        dtypes={"ends": 7},
    )
    found, ours, _ = w8a8_and_fp32(model)
    assert found["ends"]["precision"] == "fp32"
    assert found["a"]["precision"] == "w8a8"
    assert ours[0].dtype == np.int64
    np.testing.assert_array_equal(ours[0][:, 0], ours[1].argmax(axis=1))
    np.testing.assert_array_equal(ours[0][:, 1], ours[1].argmin(axis=1))


def test_a_dead_activation_gives_zeros() -> None:
    """All samples below zero: the tensor's range is empty, and its grid must still hold zero."""
    nodes = [
        node("Conv", "x p bias", "a"),
        node("Relu", "a", "dead"),
        node("Conv", "dead w", "y", pads=[1, 1, 1, 1]),
    ]
    bias = np.full(4, -100, np.float32)
    found, ours, _ = w8a8_and_fp32(image_network(nodes, ["y", "dead"], bias=bias))
    assert found["a"]["stored"] == "uint8"
    assert not ours[0].any()
    assert not ours[1].any()


def test_plans_must_name_the_networks_operators() -> None:
    network = prepared(branches)
    # TVM hands exceptions of passes on as its own.
    with pytest.raises(Exception, match="'stemm', which the network does not have"):
        AnnotatePrecision(PrecisionPlan({**network.plan().operators, "stemm": W8A8}))(network.mod)


def test_a_tensor_never_seen_to_leave_zero_keeps_its_activations_bound() -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Clip", "c zero half", "a"),
        node("Conv", "a p", "y"),
    ]
    network = prepare(image_network(nodes, ["y"], zero=np.float32(0), half=np.float32(0.5)))
    ranges = TensorRanges(network.ranges.inputs, dict.fromkeys(network.names, (0.0, 0.0)))
    annotated = Pipeline(network.plan(), ranges, "avx2").annotate(network.mod)
    scales = [float(f.attrs[attr.SCALE]) for _, f, _ in attr.calls(annotated) if attr.SCALE in f.attrs]
    assert [255 * scale for scale in scales] == pytest.approx([0.5])


def test_a_mistake_found_inside_a_pass_reaches_the_caller_as_itself() -> None:
    @tvm.transform.module_pass(opt_level=0, name="Refuse")
    class Refuse:
        def transform_module(self, mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
            raise MpqError("this network cannot be quantized")

    with pytest.raises(MpqError, match="this network cannot be quantized"):
        Refuse()(tvm.IRModule({}))


def test_what_shares_no_8_bit_region_with_weights_stays_in_float() -> None:
    """Scale and mask between two softmaxes; the sum behind the multiplication is in its region."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Softmax", "a", "s"),
        node("Mul", "s two", "scaled"),
        node("Reshape", "scaled dims", "turned"),
        node("Add", "turned mask", "masked"),
        node("Softmax", "masked", "t"),
        node("MatMul", "t v", "b"),
        node("Add", "b mask", "y"),
    ]
    constants = {
        "w": weights(6, 6),
        "v": weights(6, 5, seed=1),
        "two": np.float32(2),
        "dims": np.array([3, 2, 6]),
    }
    mask = {"mask": weights(2, 1)}
    found, ours, exact = w8a8_and_fp32(network(nodes, {"x": [6, 6]}, ["y"], {**constants, **mask}))
    executed = {name: record["precision"] for name, record in found.items()}
    assert executed["a"] == executed["b"] == executed["y"] == "w8a8"
    assert executed["scaled"] == executed["turned"] == executed["masked"] == "fp32"
    reason = "no convolution or matrix multiplication shares its 8-bit region"
    assert found["scaled"]["reason"] == found["masked"]["reason"] == reason
    assert correlation(ours[0], exact[0]) > 0.99
