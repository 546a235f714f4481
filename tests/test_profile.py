"""Kernel calls found at compile time, their times, and the roof over each."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import numpy as np
import onnx
import pytest
from frontend_networks import network, weights
from small_networks import branches, kernel, mixed, node, prepare, prepared, tokens
from tiny_package import tiny_package

from tvm_mpq import cli
from tvm_mpq.compiler import compile_model
from tvm_mpq.cost.calls import kernel_calls
from tvm_mpq.cost.loops import find_step, multiply_loop, read_loop
from tvm_mpq.cost.peaks import Peaks, measure_peaks
from tvm_mpq.cost.roofline import bound
from tvm_mpq.cpu import cache_bytes
from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.arrays import noise
from tvm_mpq.runtime.metadata import KernelCall
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.profile import profile
from tvm_mpq.runtime.session import Session
from tvm_mpq.target import host_target

MOVES = {"reshape", "permute_dims", "identity"}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    onnx.save(branches(), folder / "m.onnx")
    np.savez(folder / "d.npz", x=np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32))
    return compile_model(
        folder / "m.onnx", calibration=folder / "d.npz", output=folder / "m.tar", baseline=False
    )


@pytest.fixture(scope="module")
def found(package):
    return profile(Session(package, 1), noise(package.metadata.inputs), 5)


@functools.cache
def calls(make, precision: str) -> tuple[KernelCall, ...]:
    network = prepared(make)
    return kernel_calls(network.lower(network.annotate(network.plan(precision))))


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
@pytest.mark.parametrize("make", [branches, mixed, tokens])
def test_every_operator_has_its_kernels(make, precision):
    network = prepared(make)
    kinds = {function.attrs["mpq.operator"]: function.attrs["mpq.kind"] for function in functions(network)}
    owners = [call.operator for call in calls(make, precision) if call.role == "operator"]
    without = {name for name, kind in kinds.items() if kind not in MOVES} - set(owners)
    # A convolution may finish the sum that reads it.
    assert {kinds[name] for name in without} <= ({"add"} if precision == "w8a8" else set())
    order = [name for name in network.names if name in owners]
    assert [name for i, name in enumerate(owners) if owners.index(name) == i] == order


def functions(network):
    return [f for _, f in network.mod.functions_items() if f.attrs and "mpq.operator" in f.attrs]


def test_conversions_are_borders_between_who_made_and_who_reads():
    borders = [(c.role, c.operator, c.reader) for c in calls(tokens, "w8a8") if c.role != "operator"]
    assert borders == [
        ("quantize", "x", "up"),
        ("layout", "image", "conv"),
        ("layout", "conv", "tokens"),
        ("dequantize", "y", ""),
    ]
    assert [c.operator for c in calls(tokens, "fp32") if c.role == "quantize"] == []


def test_work_and_bytes_are_those_of_the_operator():
    found = {call.operator: call for call in calls(branches, "fp32") if call.role == "operator"}
    stem, depthwise, logits = found["stem"], found["dw"], found["logits"]
    assert stem.macs == 8 * 8 * 8 * 3 * 3 * 3
    assert stem.steps == pytest.approx(stem.macs) or stem.steps == pytest.approx(stem.macs * 4 / 9)
    assert depthwise.macs == depthwise.steps == 8 * 8 * 8 * 9
    assert (depthwise.input_bytes, depthwise.output_bytes) == (2048, 2048)
    assert depthwise.constant_bytes == 4 * 8 * (9 + 1)
    assert logits.macs == 16 * 5
    assert found["residual"].input_bytes == 2 * 2048
    assert (found["residual"].macs, found["residual"].step) == (0, "")
    eight = {call.operator: call for call in calls(branches, "w8a8")}
    assert eight["dw"].output_bytes == 512
    # A product and a sum for each multiply-accumulate, and a widening load for every third.
    pairs = {
        **dict.fromkeys(("avx2", "avx512", "avxvnni", "avx512vnni", "avx512bf16", "amx"), 2),
        "generic": 1,
    }
    expected = eight["dw"].macs * pairs[host_target().instruction] * (2 + 1 / 3) / 2
    assert eight["dw"].steps == pytest.approx(expected)


@pytest.mark.parametrize(
    "precision", ["w8a8", "w5a8", "w4a8", "w2a8", "w4g4a8", "fp16", "w8a32", "w4a32", "w4g32a32"]
)
def test_every_precision_has_a_step_with_a_loop(precision):
    constants = {"w": weights(64, 16, seed=1), "p": kernel(64, 4, 1, 1, 2)}
    nodes = [node("Conv", "x p", "conv"), node("Reshape", "conv s", "rows"), node("MatMul", "rows w", "y")]
    model = network(nodes, {"x": [1, 4, 3, 3]}, ["y"], {**constants, "s": np.array([9, 64])})
    made = prepare(model)
    listed = kernel_calls(made.lower(made.annotate(made.plan(precision))))
    steps = [c for c in listed if c.macs]
    assert [c.operator for c in steps] == ["conv", "y"]
    assert all(find_step(c.step).macs > 0 and c.steps > 0 for c in steps)
    assert steps[1].macs == 9 * 64 * 16


def test_a_run_calls_what_the_package_lists(package, found):
    trace = Session(package, 1).tracer().trace(noise(package.metadata.inputs), 2)
    assert trace.kernels == tuple(call.kernel for call in package.metadata.calls)
    assert trace.seconds.shape == (2, len(package.metadata.calls))
    assert (trace.seconds > 0).all()
    assert sum(row.calls for row in found.rows) == len(trace.kernels)
    assert Package.from_bytes(package.to_bytes()).metadata.calls == package.metadata.calls


def test_the_profile_accounts_for_the_network(found):
    assert found.network_us > 0
    assert found.sum_us < 3 * found.network_us
    assert found.instrument_us > 0
    lost = [row.lost_us for row in found.rows]
    assert lost == sorted(lost, reverse=True)
    for row in found.rows:
        if row.macs:
            assert row.gops == pytest.approx(2e-3 * row.macs / row.time_us)
            assert row.peak_share is not None
        assert row.bound_us > 0


def test_the_profile_has_the_promised_json(found):
    raw = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert raw.keys() == {
        "rows",
        "peaks",
        "network_us",
        "instrument_us",
        "runs",
        "sum_us",
        "sum_over_network",
        "furthest",
    }
    names = {field.name for field in dataclasses.fields(found.rows[0])}
    assert all(row.keys() == names | {"lost_us", "over"} for row in raw["rows"])
    assert raw["furthest"] == [row["name"] for row in raw["rows"][:3]]
    assert sum(row["time_us"] for row in raw["rows"]) == pytest.approx(raw["sum_us"])
    assert raw["peaks"].keys() == {field.name for field in dataclasses.fields(Peaks)}


PEAKS = Peaks(1, {"fma256": 50e9}, 100e9, 50e9, 10e9, 1000, 10_000)


def call(**changes) -> KernelCall:
    plain = KernelCall("k", "operator", "op", "", "fma256", 100, 100.0, 0, 400, 100)
    return dataclasses.replace(plain, **changes)


def test_the_roof_is_the_slower_of_multiplying_and_moving():
    assert bound(call(), PEAKS, 0).compute == pytest.approx(2e-9)
    assert bound(call(), PEAKS, 0).memory == pytest.approx(5e-9)
    assert bound(call(), PEAKS, 0).seconds == bound(call(), PEAKS, 0).memory
    assert bound(call(steps=1e6), PEAKS, 0).seconds == pytest.approx(2e-5)
    assert bound(call(step="", steps=0.0), PEAKS, 0).compute == 0
    # Activations come from the cache that holds them, weights from the one that holds all of the network's.
    assert bound(call(input_bytes=1900), PEAKS, 0).memory == pytest.approx(2000 / 50e9)
    assert bound(call(input_bytes=99_900), PEAKS, 0).memory == pytest.approx(100_000 / 10e9)
    assert bound(call(constant_bytes=200), PEAKS, 1 << 30).memory == pytest.approx(5e-9 + 200 / 10e9)


def test_peaks_are_measured_and_not_left_away():
    """A loop that LLVM shortens is many times faster than a machine; one that loads is slower than reading."""
    steps = {
        "generic": ["mul128", "mullo128"],
        **{name: ["fma512", "vpdpbusd512"] for name in ("avx512vnni", "avx512bf16")},
        "amx": ["fma512", "vpdpbusd512", "tdpbusd"],
    }
    chosen = steps.get(host_target().instruction, ["fma256", "pmaddwd256", "pmaddubsw256x1", "mullo256"])
    peaks = measure_peaks(chosen, host_target().tvm_dict(), 1)
    assert list(peaks.macs_per_second) == sorted(chosen)
    for name, rate in peaks.macs_per_second.items():
        steps_a_second = rate / find_step(name).macs
        slowest = 2e7 if name == "tdpbusd" else 2e8  # sixteen cycles each
        assert slowest < steps_a_second < 4 * 6e9, name
    assert 1e9 < peaks.memory_bandwidth < peaks.second_cache_bandwidth < 4e12
    assert peaks.second_cache_bytes == cache_bytes(2)
    assert peaks.last_cache_bytes >= peaks.second_cache_bytes


def test_a_loop_computes_what_its_step_says():
    import tvm
    from tvm.runtime import tensor

    step = find_step("fma256") if host_target().instruction != "generic" else find_step("mul128")
    target = host_target().tvm_target()
    main = tvm.compile(tvm.IRModule({"main": multiply_loop(step, 10, 1)}), target=target)["main"]
    weights = np.stack([np.full(step.lanes, 0.5), np.full(step.lanes, 3.0)]).astype(np.float32)
    out = tensor(np.zeros((1, 10 * step.lanes), np.float32))
    main(tensor(weights), out, 2)
    assert (out.numpy() == (3 * 0.5 + 0.5) * 0.5 + 0.5).all()
    main = tvm.compile(tvm.IRModule({"main": read_loop(256, 2)}), target=target)["main"]
    data = np.arange(256, dtype=np.float32)
    sums = tensor(np.zeros((2, 64), np.float32))
    main(tensor(data), sums, 2, 3)
    np.testing.assert_array_equal(sums.numpy().sum(axis=1), 3 * data.reshape(2, 128).sum(axis=1))


@pytest.mark.parametrize("name", ["fma128x2", "pmaddubsw256", "vpdpbusd64", "nothing"])
def test_a_step_without_a_loop_is_refused(name):
    with pytest.raises(ValueError, match=name):
        find_step(name)


def test_a_package_that_does_not_fit_its_list_is_refused(package):
    with pytest.raises(MpqError, match="does not say which kernels it calls; compile it again"):
        profile(Session(tiny_package(), 1), noise(tiny_package().metadata.inputs))
    listed = package.metadata.calls
    swapped = dataclasses.replace(package.metadata, calls=(listed[1], listed[0], *listed[2:]))
    with pytest.raises(MpqError, match="calls other kernels than its metadata lists"):
        profile(Session(dataclasses.replace(package, metadata=swapped), 1), noise(package.metadata.inputs), 1)


def test_the_command_prints_and_writes_the_profile(package, tmp_path, capfd):
    package.save(tmp_path / "m.tar")
    out = tmp_path / "p.json"
    arguments = ["benchmark", str(tmp_path / "m.tar"), "--profile", "--repeat", "3", "--json", str(out)]
    assert cli.main(arguments) == 0
    printed = capfd.readouterr().out
    assert "stem" in printed
    assert "Measured peaks" in printed
    assert printed.count("furthest from its roof") == 3
    raw = json.loads(out.read_text())
    assert len(raw["profile"]["rows"]) == len({(c.role, c.operator) for c in package.metadata.calls})
    assert math.isfinite(raw["profile"]["sum_over_network"])


def test_neither_data_nor_profile_is_a_mistake(package, tmp_path, capfd):
    package.save(tmp_path / "m.tar")
    assert cli.main(["benchmark", str(tmp_path / "m.tar")]) == 2
    assert capfd.readouterr().err.count("\n") == 1
