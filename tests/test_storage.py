"""Weights of fewer than 8 bits: packed in the package, expanded once when it is loaded, and counted both times."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from frontend_networks import network, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpret
from kernel_runner import require, target_of
from small_networks import Network, Noise, mixed, node, prepare, prepared, tokens

from tvm_mpq import cli
from tvm_mpq.compiler import compile_model
from tvm_mpq.dataset.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.expand import ExpandForm, expand
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.quantization.bitstream import pack_bits, stream_bytes, unpack_bits
from tvm_mpq.quantization.groups import Grouping
from tvm_mpq.quantization.packing import pack_factors
from tvm_mpq.quantization.rounding import round_to_nearest
from tvm_mpq.quantization.storage import Expansion, multiplier_bits, store, stored_bytes
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session
from tvm_mpq.search.candidates import Rounding
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.lift_weights import STREAM, LiftWeights
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.weight_layout import weight_layout


@given(data=st.data(), bits=st.integers(1, 8), signed=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_stream_of_bits_is_one_long_number(data, bits, signed):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    values = data.draw(st.lists(st.integers(low, high), max_size=40))
    stream = pack_bits(np.array(values, np.int64), bits)
    assert len(stream) == stream_bytes(len(values), bits) == -(-len(values) * bits // 8)
    number = sum((value % (1 << bits)) << (i * bits) for i, value in enumerate(values))
    assert stream.tobytes() == number.to_bytes(len(stream), "little")
    found = unpack_bits(stream, bits, len(values), signed)
    assert found.dtype == (np.int8 if signed else np.uint8)
    assert found.tolist() == values


def test_numbers_that_do_not_fit_are_refused():
    for value in (-9, 16):
        with pytest.raises(ValueError, match="do not fit 4 bits"):
            pack_bits(np.array([0, value]), 4)
    with pytest.raises(ValueError, match="2 bytes cannot hold 5 numbers of 4 bits"):
        unpack_bits(np.zeros(2, np.uint8), 4, 5)


def test_the_bits_of_multipliers():
    assert [multiplier_bits(bits) for bits in range(2, 9)] == [7, 6, 5, 3, 2, 1, 0]


@functools.cache
def library(form: ExpandForm) -> tvm.runtime.Module:
    mod = tvm.IRModule({"main": expand(form).with_attr("global_symbol", "main")})
    return tvm.compile(mod, target=target_of("generic").tvm_target())


def expanded(form: ExpandForm, stream: np.ndarray, expansion: Expansion, extents: tuple[int, ...]):
    out = tvm.runtime.tensor(np.full(extents, 77, "uint8" if form == "nibbles" else "int8"))
    library(form)["main"](tvm.runtime.tensor(stream), tvm.runtime.tensor(expansion.array()), out)
    return out.numpy()


@given(
    instruction=st.sampled_from(["generic", "avx2", "avx512vnni"]),
    kind=st.sampled_from(["conv2d", "conv2d", "depthwise", "winograd"]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    channels=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    groups=st.integers(1, 3),
    bits=st.integers(2, 7),
    group=st.sampled_from([0, 0, 3, 8, 16, 32, 1000]),
    start=st.integers(0, 9),
)
@settings(max_examples=120, deadline=None)
def test_weights_expand_to_what_numpy_packs(instruction, kind, kernel, channels, groups, bits, group, start):
    inputs, outputs = channels
    if kind == "winograd":
        kernel, groups, instruction = (3, 3), 1, "avx2"
    if kind == "depthwise":
        inputs, groups, outputs = 1, outputs, outputs
    else:
        outputs *= groups
    rng = np.random.default_rng(bits)
    w = rng.normal(size=(outputs, inputs, *kernel)).astype(np.float32)
    chosen = round_to_nearest(w, bits, group)
    shape = ConvolutionShape(1, 9, 9, inputs * groups, outputs, kernel, groups=groups)
    spec = KernelSpec(kind, shape, "uint8", Output("uint8"), instruction)
    if kind in ("conv2d", "winograd"):
        spec = KernelSpec(kind, shape, "uint8", Output("uint8"), instruction, bits, chosen.effective_group)
    layout = weight_layout(spec)
    stream, expansion = store(chosen, layout.extents[0], layout.cut)
    assert len(stream) == stored_bytes(chosen)
    # Anywhere in a longer stream, and nothing behind it is read.
    stream = np.concatenate([rng.integers(0, 256, start).astype(np.uint8), stream])
    expansion = Expansion(start, *(vars(expansion)[name] for name in list(vars(expansion))[1:]))
    form = "nibbles" if layout.nibbles else "multiplied" if chosen.effective_group else "codes"
    found = expanded(form, stream, expansion, layout.extents).reshape(layout.shape)
    np.testing.assert_array_equal(found, layout.pack(chosen.codes if layout.nibbles else chosen.int8))
    if layout.multipliers is not None:
        count = layout.multipliers[2] // kernel[0]
        extents = (*layout.multipliers[:2], kernel[0], count, layout.multipliers[3])
        found = expanded("multipliers", stream, expansion, extents).reshape(layout.multipliers)
        np.testing.assert_array_equal(found, pack_factors(chosen.row_multipliers, groups, spec.row.lanes))


MIX = ["w4a8", "w4g8a8", "w2g3a8", "w8a8", "w7a8", "w3a8", "w5a8"]


def plan_of(net: Network):
    return net.plan(others={name: MIX[i % len(MIX)] for i, name in enumerate(net.names)})


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Packages of networks under a mix of all weight bits, compiled as a user would, each once."""

    @functools.cache
    def compiled(make, instruction: str) -> Package:
        path = tmp_path_factory.mktemp("network") / "m.onnx"
        onnx.save(make(), path)
        net = prepared(make)
        samples = Dataset(Noise(net.mod))
        return compile_model(
            path,
            target=target_of(instruction),
            calibration=samples,
            plan=plan_of(net),
            rounding=Rounding("nearest", correct_biases=False),
            baseline=False,
        )

    return compiled


@pytest.mark.parametrize(("make", "instruction"), [(mixed, "avx2"), (tokens, "generic")])
def test_a_loaded_package_equals_integer_arithmetic_in_numpy(packages, make, instruction):
    require(instruction)
    net = prepared(make)
    package = Package.from_bytes(packages(make, instruction).to_bytes())
    assert package.weights
    session = Session(package, threads=1)
    exact = interpret(net.annotate(plan_of(net)), net.feeds())
    for _ in range(2):
        for ours, expected in zip(session.run(net.feeds()), exact, strict=True):
            np.testing.assert_array_equal(ours, expected, strict=True)
    assert session.time(net.feeds(), 3).shape == (3,)


@pytest.mark.parametrize("make", [mixed, tokens])
def test_the_files_weights_are_the_bits_of_the_plan(packages, make):
    """Counted from the plan and the ONNX shapes alone."""
    package, net = packages(make, "generic"), prepared(make)
    expected, narrow, constants = 0, 0, 0
    for _, function, _ in attr.calls(net.annotate(plan_of(net))):
        executed, weight = attr.executed(function), read_body(function).weight
        if attr.text(function, attr.KIND) not in ("conv2d", "depthwise_conv2d", "matmul"):
            continue
        constants += weight.size if executed.weight_bits == 8 else 0
        if executed.weight_bits == 8:
            continue
        narrow += 1
        expected += -(-weight.size * executed.weight_bits // 8)
        shape = weight.T[:, :, None, None].shape if weight.ndim == 2 else weight.shape
        count = Grouping.of(shape, executed.group).count if executed.group else 1
        if count > 1:
            expected += -(-shape[0] * count * multiplier_bits(executed.weight_bits) // 8)
    assert narrow > 2
    assert len(package.weights) == expected
    storage = package.metadata.storage
    assert storage.weights >= expected + constants
    assert storage.weights_resident > storage.weights, "int8 where the file has 2 to 7 bits"
    assert storage.resident > storage.weights_resident
    assert storage.weights_fp32 > 3 * expected


@pytest.mark.parametrize(
    ("precision", "instruction", "in_file", "in_memory"),
    [
        ("w8a8", "avx2", 0, 0),
        ("w6a8", "avx2", 64 * 128 * 6 // 8, 64 * 128),
        ("w4a8", "avx2", 64 * 128 // 2, 64 * 128 // 2),
        ("w4a8", "generic", 64 * 128 // 2, 64 * 128),
        ("w4g32a8", "avx2", 64 * 128 // 2 + 64 * 4 * 5 // 8, 64 * 128 // 2 + 64 * 4),
        ("w4g5a8", "avx2", 64 * 128 // 2 + 64 * 26 * 5 // 8, 64 * 128),
        ("w2a8", "avx2", 64 * 128 // 4, 64 * 128 // 2),
    ],
)
def test_bytes_in_the_file_and_in_memory(tmp_path, precision, instruction, in_file, in_memory):
    """One matrix 128 × 64 on the road of a user: 4-bit codes stay packed where the kernel unpacks them."""
    model = network([node("MatMul", "x w", "y")], {"x": [3, 128]}, ["y"], {"w": weights(128, 64, scale=0.1)})
    onnx.save(model, tmp_path / "m.onnx")
    samples = Dataset(Noise(import_onnx(tmp_path / "m.onnx")))
    target = target_of(instruction)
    made = compile_model(tmp_path / "m.onnx", target=target, calibration=samples, precision=precision)
    assert len(made.weights) == in_file
    storage = made.metadata.storage
    assert storage.weights_resident - (storage.weights - in_file) == in_memory
    assert storage.weights_fp32 == 4 * 64 * 128
    if precision == "w8a8":
        assert storage.weights == storage.weights_resident > 64 * 128


def test_nothing_is_expanded_in_a_call(packages):
    """Every kernel that ``main`` calls reads its weights as they are bound."""
    package = packages(tokens, "generic")
    trace = Session(package, 1).tracer().trace(prepared(tokens).feeds(), 1)
    assert trace.kernels == tuple(call.kernel for call in package.metadata.calls)
    assert not [name for name in trace.kernels if "expand" in name]


def test_lifting_leaves_other_modules_as_they_are():
    net = prepared(tokens)
    pipeline = net.pipeline(net.plan())
    lowered = pipeline.lower(pipeline.annotate(net.mod))
    assert LiftWeights()(lowered).same_as(lowered)
    assert STREAM not in (lowered.attrs or {})


def test_equal_weights_are_stored_once():
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "x w", "b"), node("Add", "a b", "y")]
    model = network(nodes, {"x": [3, 16]}, ["y"], {"w": weights(16, 16, scale=0.2)})
    net = prepare(model)
    lowered = net.lower(net.annotate(net.plan("w4a8")))
    assert lowered.attrs[STREAM].numpy().nbytes == 16 * 16 // 2


def test_damaged_weights_are_refused(packages):
    package = packages(mixed, "generic")
    flipped = bytes([package.weights[0] ^ 1]) + package.weights[1:]
    for stream in (flipped, package.weights[:-1], b""):
        damaged = Package(package.metadata, package.plan, package.library, stream)
        with pytest.raises(MpqError, match=r"m\.tar was altered: weights\.bin does not match the hash"):
            Package.from_bytes(damaged.to_bytes(), "m.tar")


def test_the_command_line_says_what_is_saved(tmp_path, capsys, monkeypatch):
    model = network([node("MatMul", "x w", "y")], {"x": [1, 256]}, ["y"], {"w": weights(256, 64, scale=0.1)})
    monkeypatch.chdir(tmp_path)
    onnx.save(model, "m.onnx")
    rng = np.random.default_rng(0)
    np.savez("d.npz", x=rng.normal(size=(9, 256)).astype(np.float32), labels=rng.integers(0, 64, 9))
    arguments = ["compile", "m.onnx", "--calibration", "d.npz", "--output", "m.tar", "--json", "c.json"]
    assert cli.main([*arguments, "--precision", "w6a8", "--target", "x86-64-v2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    storage = json.loads(Path("c.json").read_text())["metadata"]["storage"]
    assert storage["weights_resident"] - storage["weights"] == 256 * 64 // 4
    assert f"weights {storage['weights'] / 1000:.2f} kB (× " in said
    assert f"in memory {storage['weights_resident'] / 1000:.2f} kB (× " in said
    assert cli.main(["benchmark", "m.tar", "--data", "d.npz", "--repeat", "5", "--json", "b.json"]) == 0
    assert "storage weights in memory" in capsys.readouterr().out
    found = json.loads(Path("b.json").read_text())["storage_bytes"]
    assert (found["weights"], found["weights_resident"]) == (
        storage["weights"],
        storage["weights_resident"],
    )


def test_weights_that_the_library_cannot_expand_are_answered_in_one_line(packages):
    """Only a package put together by hand gets here: files are checked against their hashes before."""
    package = packages(mixed, "generic")
    other = Package(package.metadata, package.plan, package.library, package.weights[:-1])
    with pytest.raises(MpqError, match="cannot expand the package's weights") as caught:
        Session(other, 1)
    assert "\n" not in str(caught.value)
