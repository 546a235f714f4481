"""Integer regions give the same bytes everywhere: in NumPy, and in the code of every instruction set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from emulated_network import emulated_runner
from frontend_networks import network, weights
from interpreter import interpret
from kernel_runner import TARGETS, TILES, missing, require, target_of
from small_networks import (
    Feeds,
    Network,
    branches,
    curves,
    gates,
    mixed,
    node,
    prepare,
    prepared,
    runner,
    tokens,
)

from tvm_mpq.calibration import calibrate
from tvm_mpq.dataset import open_dataset
from tvm_mpq.frontend import import_onnx, io_specs
from tvm_mpq.target import host_target

SHARED = Path(__file__).parents[1] / ".." / "shared"
INSTRUCTIONS = pytest.mark.parametrize("instruction", list(TARGETS))


@functools.cache
def compiled(make: Callable[[], onnx.ModelProto], instruction: str) -> Callable[..., list[np.ndarray]]:
    """One of the small networks, all w8a8, as a function of its inputs."""
    network, target = prepared(make), target_of(instruction)
    lowered = network.lower(network.annotate(), target)
    return emulated_runner(lowered, target.name) if missing(instruction) else runner(lowered, target)


def extremes(network: Network) -> Feeds:
    """Far beyond the calibrated ranges, so that every grid saturates somewhere."""
    return {name: array * np.float32(25) for name, array in network.feeds().items()}


@INSTRUCTIONS
@pytest.mark.parametrize("make", [mixed, tokens, curves, gates])
def test_compiled_networks_equal_integer_arithmetic_in_numpy(make, instruction: str) -> None:
    require(instruction)
    network = prepared(make)
    annotated = network.annotate()
    for feeds in (network.feeds(), network.feeds(3), extremes(network)):
        found = compiled(make, instruction)(*feeds.values())
        for ours, exact in zip(found, interpret(annotated, feeds), strict=True):
            np.testing.assert_array_equal(ours, exact, strict=True)
            assert len(np.unique(ours)) > 10, "a network that says nothing proves nothing"


def odd_networks() -> dict[str, onnx.ModelProto]:
    """Shapes at the edges of the templates: one channel, one pixel, one row, deep reductions, wide strides."""
    single = [node("Conv", "x w", "y", strides=[3, 3], pads=[1, 2, 0, 3]), node("Relu", "y", "z")]
    deep = [
        node("Conv", "x w b", "a"),
        node("Add", "a x", "s"),
        node("MaxPool", "s", "y", kernel_shape=[1, 1]),
    ]
    line = [
        node("Conv", "x w", "a", pads=[0, 3, 0, 3]),
        node("Conv", "a v", "b", group=5, pads=[0, 1, 0, 1], strides=[1, 2]),
        node("AveragePool", "b", "c", kernel_shape=[1, 4], strides=[1, 3], ceil_mode=1),
        node("Concat", "c c c", "y", axis=2),
    ]
    return {
        "one channel": network(single, {"x": [3, 1, 7, 8]}, ["z"], {"w": weights(1, 1, 3, 4)}),
        "one pixel": network(
            deep, {"x": [1, 300, 1, 1]}, ["y"], {"w": weights(300, 300, 1, 1), "b": weights(300, scale=9)}
        ),
        "one row": network(
            line, {"x": [2, 2, 1, 23]}, ["y"], {"w": weights(5, 2, 1, 7), "v": weights(5, 1, 1, 3)}
        ),
    }


@pytest.mark.parametrize("name", ["one channel", "one pixel", "one row"])
def test_odd_shapes_equal_integer_arithmetic_in_numpy(name: str) -> None:
    network = prepare(odd_networks()[name])
    annotated = network.annotate()
    lowered = network.lower(annotated)
    for feeds in (network.feeds(), extremes(network)):
        for ours, exact in zip(network.run(lowered, feeds), interpret(annotated, feeds), strict=True):
            np.testing.assert_array_equal(ours, exact, strict=True)


def test_the_interpreter_is_the_network() -> None:
    """Integer arithmetic that agreed with the kernels on the same mistake would be far from fp32."""
    for make in (mixed, tokens, curves, gates):
        network = prepared(make)
        floats = network.run(network.lower(network.annotate(network.plan("fp32"))), network.feeds())
        for exact, real in zip(interpret(network.annotate(), network.feeds()), floats, strict=True):
            assert np.corrcoef(exact.ravel(), real.ravel())[0, 1] > 0.999


def runnable() -> list[str]:
    names = []
    for instruction in (*TARGETS, *TILES):
        try:
            require(instruction)
        except pytest.skip.Exception:
            continue
        names.append(instruction)
    return names


@pytest.mark.parametrize("make", [mixed, tokens, branches, curves, gates])
def test_instruction_sets_give_the_same_bytes(make) -> None:
    network = prepared(make)
    names = runnable()
    if len(names) < 2:
        pytest.skip(f"this machine runs {', '.join(names)} only")
    first, *others = (
        [output for batch in (0, 3) for output in compiled(make, name)(*network.feeds(batch).values())]
        for name in names
    )
    # A softmax after the last dequantize is a float operator: its bytes are no promise.
    outputs = [place for place in range(len(first)) if make is not branches or place % 2]
    for other in others:
        for place in outputs:
            np.testing.assert_array_equal(first[place], other[place], strict=True)


@functools.cache
def lite0() -> tuple[Network, Feeds]:
    """EfficientNet-Lite0 calibrated on 8 photos, and another photo."""
    model, photos = SHARED / "models" / "efficientnet-lite0.onnx", SHARED / "data" / "imagenet-calibration"
    for path in (model, photos):
        if not path.exists():
            pytest.skip(f"{path} is not there")
    mod = import_onnx(model, {io_name(model): (1, 3, 224, 224)})
    dataset = open_dataset(photos, io_specs(mod)[0], resize=224, mean=127.0, scale=0.0078125)
    ranges = calibrate(mod, dataset.take(8), "minmax", host_target())
    return Network(mod, ranges), dataset.batch([5])


def io_name(model: Path) -> str:
    return onnx.load(model, load_external_data=False).graph.input[0].name


def lite0_logits(instruction: str) -> np.ndarray:
    network, photo = lite0()
    target = target_of(instruction)
    lowered = network.lower(network.annotate(), target)
    run = emulated_runner(lowered, target.name) if missing(instruction) else runner(lowered, target)
    return run(*photo.values())[0]


def test_instruction_sets_give_the_same_bytes_of_efficientnet_lite0() -> None:
    """The logits leave the last accumulator as float in one multiplication each."""
    lite0()
    names = [name for name in runnable() if name != "avx512bf16"]  # whose 8-bit kernels are avx512vnni's
    if len(names) < 2:
        pytest.skip(f"this machine runs {', '.join(names)} only")
    first, *others = (lite0_logits(name) for name in names)
    assert len(np.unique(first)) > 500
    for other in others:
        np.testing.assert_array_equal(first, other, strict=True)
    network, photo = lite0()
    np.testing.assert_array_equal(first, interpret(network.annotate(), photo)[0], strict=True)
