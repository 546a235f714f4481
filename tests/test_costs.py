"""The cost table: measured on small networks, predicted plans, the cache, and the roofline model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import onnx
import pytest
from frontend_networks import network
from hypothesis import given
from hypothesis import strategies as st
from small_networks import branches, kernel, node, prepared, tokens

from tvm_mpq import cli
from tvm_mpq.cost.assemble import TimedPlan, assemble
from tvm_mpq.cost.loops import multiplications
from tvm_mpq.cost.measure import measure_costs
from tvm_mpq.cost.modelled import model_costs, peaks_of
from tvm_mpq.cost.network import alternating_plans, edges, executed_plan, roots
from tvm_mpq.cost.runs import Stopwatch
from tvm_mpq.cost.store import KernelTimes
from tvm_mpq.cost.table import BoundaryCost, Check, CostTable, OperatorCost
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, W8A8, Precision
from tvm_mpq.runtime.metadata import KernelCall
from tvm_mpq.target import host_target, load_target

W4A8 = Precision.parse("w4a8")


@pytest.fixture(scope="module")
def mod():
    return prepared(branches).mod


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def table(mod, cache) -> CostTable:
    return measure_costs(mod, host_target(), [W8A8], cache=cache, model_sha256="a" * 64)


def test_the_table_predicts_whole_networks():
    """Two milliseconds of convolutions. A machine busy with something else may spoil two attempts of three."""
    nodes = [node("Conv", f"{'x' if i == 0 else f'c{i - 1}'} w{i}", f"c{i}") for i in range(4)]
    constants = {f"w{i}": kernel(96, 96, 1, 1, i) for i in range(4)}
    chain = import_onnx(network(nodes, {"x": [1, 96, 56, 56]}, ["c3"], constants))
    for _ in range(3):
        checks = measure_costs(chain, host_target(), [W8A8], checks=1).checks
        assert [check.plan for check in checks] == ["fp32", "w8a8", "random 1"]
        if all(0.8 < check.ratio < 1.25 for check in checks):
            return
    pytest.fail(f"three times out of range, at last {checks}")


def test_a_uniform_plan_is_the_sum_of_its_operators(table):
    assert [check.plan for check in table.checks] == ["fp32", "w8a8"]
    assert all(check.measured > 0 for check in table.checks)
    assert table.predict(PrecisionPlan.uniform(prepared(branches).names, FP32)) == pytest.approx(
        sum(operator.seconds["fp32"] for operator in table.operators)
    )
    assert all(seconds >= 0 for o in table.operators for seconds in o.seconds.values())
    assert sum(o.seconds["w8a8"] for o in table.operators) > 0


def test_what_has_no_kernel_costs_what_it_is_executed_in(table):
    softmax = next(operator for operator in table.operators if operator.kind == "softmax")
    assert softmax.executed == {"fp32": "fp32", "w8a8": "fp32"}
    assert softmax.seconds["w8a8"] == softmax.seconds["fp32"]
    assert table.boundary_seconds["logits", "y"]["w8a8", "w8a8"] == pytest.approx(
        next(b.to_float for b in table.boundaries if b.reader == "y")
    )


def test_kernels_known_from_before_are_not_run_again(mod, cache, table, monkeypatch):
    def fail(*_):
        raise AssertionError("ran a network whose kernels are all known")

    monkeypatch.setattr("tvm_mpq.cost.runs.build", fail)
    again = measure_costs(mod, host_target(), [W8A8], cache=cache, model_sha256="a" * 64)
    assert again == table
    with pytest.raises(AssertionError, match="all known"):
        measure_costs(mod, host_target(), [W8A8, W4A8], cache=cache)


def test_another_run_adds_what_is_missing_and_keeps_what_is_there(mod, cache, table):
    wider = measure_costs(mod, host_target(), [W8A8, W4A8], cache=cache, checks=1)
    for operator, before in zip(wider.operators, table.operators, strict=True):
        assert operator.seconds["fp32"] == before.seconds["fp32"]
        assert operator.seconds.keys() == {"fp32", "w8a8", "w4a8"}
    assert [check.plan for check in wider.checks] == ["fp32", "w8a8", "w4a8", "random 1"]
    times = KernelTimes.open(cache, host_target(), 1)
    assert len(times.networks) >= 4
    assert KernelTimes.open(cache, replace(host_target(), mattr=("+avx",)), 1).kernels == {}
    assert Stopwatch(host_target(), 1, times).measured == 0


def test_a_damaged_cache_is_named(tmp_path):
    times = KernelTimes.open(tmp_path, host_target(), 1)
    times.kernels["k"] = 1e-6
    times.save()
    assert KernelTimes.open(tmp_path, host_target(), 1).kernels == {"k": 1e-6}
    for text in (
        "{",
        "[]",
        '{"kernels": {"k": -1}, "networks": {}}',
        '{"kernels": {"k": "x"}, "networks": {}}',
    ):
        times.path.write_text(text)
        with pytest.raises(MpqError, match="damaged; delete the file"):
            KernelTimes.open(tmp_path, host_target(), 1)


def test_processes_add_to_one_cache(tmp_path):
    first, second = (KernelTimes.open(tmp_path, host_target(), 1) for _ in range(2))
    first.kernels["a"], second.kernels["b"] = 1.0, 2.0
    first.save()
    second.save()
    assert KernelTimes.open(tmp_path, host_target(), 1).kernels == {"a": 1.0, "b": 2.0}


def test_boundaries_lie_between_what_computes():
    network = prepared(tokens)
    found = edges(network.mod)
    assert ("up_r", "across") in found or ("up", "across") in found
    root = roots(network.mod)
    assert root["back"] == "across"
    assert all(root[name] == name for edge in found for name in edge)


def test_alternating_plans_convert_both_ways(mod):
    first, second = alternating_plans(mod, W8A8)
    weighted = ["stem", "dw", "project", "logits"]
    assert [str(first[name]) for name in weighted] == ["w8a8", "fp32", "w8a8", "fp32"]
    assert [str(second[name]) for name in weighted] == ["fp32", "w8a8", "fp32", "w8a8"]
    assert executed_plan(mod, first)["residual"] == W8A8


def call(kernel, role, operator, reader="", size=100) -> KernelCall:
    return KernelCall(kernel, role, operator, reader, "", 0, 0.0, 0, size, size)


def timed(asked, calls, executed=None) -> TimedPlan:
    kernels, seconds = zip(*calls, strict=True)
    return TimedPlan(asked, executed or asked, kernels, seconds)


def test_costs_come_from_the_plans_that_show_them():
    """a → b → c: 8-bit a takes 3, and 5 when it leaves as a float; b's float is quantized in 7; c gets a's line."""
    quantize = (call("q", "quantize", "x", "a"), 11.0)
    floats = [(call("fa", "operator", "a"), 30.0), (call("fb", "operator", "b"), 20.0)]
    uniform = {
        "fp32": timed(dict.fromkeys("abc", "fp32"), [*floats, (call("fc", "operator", "c"), 10.0)]),
        "w8a8": timed(
            dict.fromkeys("abc", "w8a8"),
            [
                quantize,
                (call("ia", "operator", "a"), 3.0),
                (call("ib", "operator", "b"), 2.0),
                (call("ic", "operator", "c"), 1.0),
                (call("d", "dequantize", "c"), 4.0),
            ],
        ),
    }
    mixed = timed(
        {"a": "w8a8", "b": "fp32", "c": "w8a8"},
        [
            quantize,
            (call("ia2", "operator", "a"), 5.0),
            floats[1],
            (call("q", "quantize", "b", "c"), 7.0),
            (call("ic", "operator", "c"), 1.0),
        ],
    )
    names = {name: "conv2d" for name in "abc"}
    costs, boundaries = assemble(names, {n: n for n in "abc"}, [("a", "b"), ("b", "c")], uniform, [mixed])
    assert {o.name: o.seconds for o in costs} == {
        "a": {"fp32": 30.0, "w8a8": 14.0},
        "b": {"fp32": 20.0, "w8a8": 2.0},
        "c": {"fp32": 10.0, "w8a8": 5.0},
    }
    assert boundaries == (BoundaryCost("a", "b", 2.0, 7.0), BoundaryCost("b", "c", 2.0, 7.0))


EXAMPLE = CostTable(
    1,
    "measured",
    "",
    "host",
    "",
    1,
    ("fp32", "w8a8"),
    tuple(
        OperatorCost(name, "conv2d", {"fp32": "fp32", "w8a8": "w8a8"}, {"fp32": 4.0, "w8a8": 1.0})
        for name in "abcd"
    ),
    (BoundaryCost("a", "b", 0.5, 0.25), BoundaryCost("a", "c", 0.5, 0.25), BoundaryCost("b", "d", -0.5, 2.0)),
    (Check("fp32", 16.0, 16.5),),
)


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_prediction_is_operators_and_each_tensors_conversion_once(bits):
    names = dict(zip("abcd", bits, strict=True))
    plan = PrecisionPlan({name: W8A8 if bit else FP32 for name, bit in names.items()})
    expected = sum(1.0 if bit else 4.0 for bit in bits)
    if names["a"] != names["b"] or names["a"] != names["c"]:
        expected += 0.5 if names["a"] else 0.25
    if names["b"] != names["d"]:
        expected += -0.5 if names["b"] else 2.0
    assert EXAMPLE.predict(plan) == pytest.approx(expected)
    for (producer, reader), costs in EXAMPLE.boundary_seconds.items():
        assert costs[str(plan[producer]), str(plan[reader])] in (0.0, 0.5, 0.25, -0.5, 2.0)


def test_a_table_is_read_back(tmp_path, table):
    for each in (EXAMPLE, table):
        each.save(tmp_path / "c.json")
        assert CostTable.load(tmp_path / "c.json") == each
    assert json.loads(EXAMPLE.to_json()).keys() == {f.name for f in dataclasses.fields(CostTable)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a cost table: it is not valid JSON"),
        ("[]", "cost table version None"),
        ('{"schema_version": 7}', "cost table version 7; this tvm_mpq reads 1"),
        ('{"schema_version": 1}', "lacks the field 'kind'"),
        (EXAMPLE.to_json().replace('"producer": "b"', '"producer": "z"'), "operator that it does not list"),
    ],
)
def test_a_wrong_table_is_answered_in_one_line(text, message):
    with pytest.raises(MpqError, match=message):
        CostTable.from_json(text, "c.json")


def test_plans_that_do_not_fit_the_table_are_refused():
    with pytest.raises(MpqError, match="no w4a8 for operator 'a', only fp32, w8a8"):
        EXAMPLE.predict(PrecisionPlan.uniform("abcd", W4A8))
    with pytest.raises(MpqError, match="no line for operator 'd'"):
        EXAMPLE.predict(PrecisionPlan.uniform("abc", W8A8))


def test_a_model_needs_no_machine(mod):
    zen = load_target("znver4")
    found = model_costs(mod, zen, [W8A8, W4A8])
    assert (found.kind, found.target, found.checks) == ("modelled", "znver4", ())
    assert found.predict(PrecisionPlan.uniform(prepared(branches).names, W8A8)) > 0
    quicker = replace(zen, roofline=replace(zen.roofline, clock_ghz=36.0, second_cache_gbs=1e6))
    assert sum(o.seconds["fp32"] for o in model_costs(mod, quicker, [W8A8]).operators) < sum(
        o.seconds["fp32"] for o in found.operators
    )


def test_modelled_peaks_are_units_times_clock():
    roofline = load_target("haswell").roofline
    peaks = peaks_of(roofline, {"fma256", "pmaddwd256", "pmaddubsw256x2"}, 2)
    assert peaks.macs_per_second["fma256"] == pytest.approx(3.2e9 * 2 * 8 * 2)
    assert peaks.macs_per_second["pmaddwd256"] == pytest.approx(3.2e9 * 1 * 16 * 2)
    assert multiplications("pmaddubsw256x2") == 3
    assert peaks.macs_per_second["pmaddubsw256x2"] == pytest.approx(3.2e9 * 64 / 3 * 2)
    assert peaks.memory_bandwidth == roofline.memory_gbs * 1e9


def test_what_cannot_be_measured_or_modelled_is_said(mod):
    lacking = replace(host_target(), features=("avx1024",))
    with pytest.raises(MpqError, match="this machine lacks avx1024; use --modelled"):
        measure_costs(mod, lacking, [W8A8])
    with pytest.raises(MpqError, match=r"host has no \[roofline\] to model costs from"):
        model_costs(mod, host_target(), [W8A8])
    with pytest.raises(MpqError, match="no kernels for w4a8: use fp32"):
        measure_costs(mod, replace(host_target(), precisions=("fp32", "w8a8")), [W4A8])


def test_the_command_writes_and_prints_the_table(tmp_path, capfd):
    onnx.save(branches(), tmp_path / "m.onnx")
    out = tmp_path / "c.json"
    arguments = ["costs", str(tmp_path / "m.onnx"), "--target", "znver4", "--modelled", "-o", str(out)]
    assert cli.main(arguments) == 0
    printed = capfd.readouterr().out
    assert "modelled cost in µs: znver4" in printed
    assert "Modelled, not measured" in printed
    assert CostTable.load(out).kind == "modelled"
    assert cli.main([*arguments[:-1], str(tmp_path / "none" / "c.json")]) == 2
    assert cli.main(["costs", str(tmp_path / "m.onnx"), "--precisions", "w9a8", "-o", str(out)]) == 2
    assert capfd.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("target", ["raspberry-pi-4", "raspberry-pi-5", "graviton3", "armv7-neon", "riscv64"])
def test_costs_are_modelled_for_machines_of_other_kinds(mod, target, capfd):
    chosen = [Precision.parse(name) for name in ("w8a8", "w6a8", "w4a8", "w4g32a8", "w8a32", "w4a32", "fp16")]
    table = model_costs(mod, load_target(target), chosen)
    assert table.target == target
    for precision in chosen:
        assert sum(operator.seconds[str(precision)] for operator in table.operators) > 0
    assert capfd.readouterr().err == ""
