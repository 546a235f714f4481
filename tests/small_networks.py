"""Small ONNX networks that mix every integer kind, and the road through the passes in a few calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import tvm
from frontend_networks import network, weights
from onnx import helper
from tvm import relax

from tvm_mpq.build import build
from tvm_mpq.calibration import calibrate
from tvm_mpq.dataset.dataset import Dataset
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import Precision
from tvm_mpq.runtime.weights import expanded_weights
from tvm_mpq.target import Target, host_target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline

Feeds = dict[str, np.ndarray]
SAMPLES = 6


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its output; ``inputs`` are separated by spaces."""
    return helper.make_node(op_type, inputs.split(), [output], name=output, **attributes)


def kernel(outputs: int, inputs: int, height: int, width: int, seed: int) -> np.ndarray:
    """Random weights that keep the size of activations."""
    return weights(outputs, inputs, height, width, seed=seed, scale=(inputs * height * width) ** -0.5)


def mixed() -> onnx.ModelProto:
    """Every integer kind on images [2, 3, 17, 15].

    With odd channels, asymmetric padding, dilation, groups and a depthwise multiplier. The outputs are a
    matrix multiplication's logits, and a concatenation that later operators read too.
    """
    bounds = {"zero": np.float32(0), "six": np.float32(6), "minus": np.float32(-0.75)}
    nodes = [
        node("Conv", "x w1 b1", "stem", strides=[2, 2], pads=[0, 1, 2, 1]),
        node("Clip", "stem zero six", "stem_r6"),
        node("Conv", "stem_r6 w2 b2", "dw", group=10, pads=[1, 1, 1, 1]),
        node("Relu", "dw", "dw_r"),
        node("Conv", "dw_r w3 b3", "project"),
        node("Add", "project stem_r6", "residual"),
        node("Clip", "residual minus", "residual_r"),
        node("MaxPool", "residual_r", "max", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("AveragePool", "max", "avg", kernel_shape=[2, 3], pads=[0, 1, 1, 1], count_include_pad=1),
        node("AveragePool", "max", "avg_in", kernel_shape=[2, 3], pads=[0, 1, 1, 1]),
        node("Conv", "max w4", "grouped", group=2, dilations=[2, 1], pads=[2, 1, 2, 1]),
        node("Concat", "avg grouped avg_in max", "cat", axis=1),
        node("Clip", "cat minus", "cut"),
        node("Conv", "cut w5 b5", "wide", group=36, pads=[0, 0, 1, 0]),
        node("GlobalAveragePool", "wide", "gap"),
        node("Flatten", "gap", "flat"),
        node("Gemm", "flat w6 b6", "hidden", transB=1),
        node("Relu", "hidden", "hidden_r"),
        node("Gemm", "hidden_r w7 b7", "logits", transB=1),
    ]
    constants = {
        "w1": kernel(10, 3, 3, 4, 1),
        "b1": weights(10, seed=2, scale=0.3) + np.float32(0.5),
        "w2": kernel(10, 1, 3, 3, 3),
        "b2": weights(10, seed=4, scale=0.3),
        "w3": kernel(10, 10, 1, 1, 5),
        "b3": weights(10, seed=6, scale=0.3),
        "w4": kernel(6, 5, 3, 3, 7),
        "w5": kernel(72, 1, 2, 1, 8),
        "b5": weights(72, seed=9, scale=0.3),
        "w6": weights(21, 72, seed=10, scale=0.3),
        "b6": weights(21, seed=11, scale=0.3),
        "w7": weights(7, 21, seed=12, scale=0.3),
        "b7": weights(7, seed=13, scale=0.3),
        **bounds,
    }
    return network(nodes, {"x": [2, 3, 17, 15]}, ["logits", "cat"], constants)


def tokens() -> onnx.ModelProto:
    """Rank 3 and moves between 8-bit operators: a mixer on [2, 5, 12], its result a sum."""
    nodes = [
        node("MatMul", "x w1", "up"),
        node("Relu", "up", "up_r"),
        node("Transpose", "up_r", "turned", perm=[0, 2, 1]),
        node("MatMul", "turned w2", "across"),
        node("Transpose", "across", "back", perm=[0, 2, 1]),
        node("Add", "back up_r", "joined"),
        node("Reshape", "joined shape", "image"),
        node("Conv", "image w3", "conv", pads=[1, 1, 1, 1]),
        node("Reshape", "conv rows", "tokens"),
        node("Concat", "tokens joined", "cat", axis=1),
        node("Add", "cat cat", "y"),
    ]
    constants = {
        "w1": weights(12, 18, seed=1, scale=0.3),
        "w2": weights(5, 5, seed=2, scale=0.4),
        "w3": kernel(5, 5, 3, 3, 3),
        "shape": np.array([2, 5, 3, 6]),
        "rows": np.array([2, 5, 18]),
    }
    return network(nodes, {"x": [2, 5, 12]}, ["y"], constants)


def branches() -> onnx.ModelProto:
    """Images [1, 3, 8, 8] → [1, 5]: a residual block, a depthwise convolution, a concatenation, a softmax."""
    nodes = [
        node("Conv", "x w1 b1", "stem", pads=[1, 1, 1, 1]),
        node("Relu", "stem", "stem_r"),
        node("Conv", "stem_r w2", "dw", group=8, pads=[1, 1, 1, 1]),
        node("Relu", "dw", "dw_r"),
        node("Conv", "dw_r w3 b3", "project"),
        node("Add", "project stem_r", "residual"),
        node("MaxPool", "residual", "max", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", "residual", "avg", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", "max avg", "cat", axis=1),
        node("GlobalAveragePool", "cat", "gap"),
        node("Flatten", "gap", "flat"),
        node("Gemm", "flat w4 b4", "logits", transB=1),
        node("Softmax", "logits", "y", axis=1),
    ]
    constants = {
        "w1": kernel(8, 3, 3, 3, 1),
        "b1": weights(8, seed=2, scale=0.3),
        "w2": kernel(8, 1, 3, 3, 3),
        "w3": kernel(8, 8, 1, 1, 4),
        "b3": weights(8, seed=5, scale=0.3),
        "w4": weights(5, 16, seed=6),
        "b4": weights(5, seed=7, scale=0.3),
    }
    return network(nodes, {"x": [1, 3, 8, 8]}, ["y", "logits"], constants)


def attention() -> onnx.ModelProto:
    """Scores of [2, 3, 11, 15] with itself, their softmax, and its application."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 1, 3, 2]),
        node("MatMul", "x t", "scores"),
        node("Softmax", "scores", "shares", axis=-1),
        node("MatMul", "shares x", "y"),
    ]
    return network(nodes, {"x": [2, 3, 11, 15]}, ["y"])


def curves() -> onnx.ModelProto:
    """Images [2, 3, 9, 7] through functions of each element: hard-swish and gelu spelled out, silu, a shifted clip."""
    nodes = [
        node("Conv", "x w1 b1", "stem", pads=[1, 1, 1, 1]),
        node("Add", "stem three", "shifted"),
        node("Clip", "shifted zero six", "cut"),
        node("Mul", "stem cut", "product"),
        node("Div", "product six", "hard_swish"),
        node("Conv", "hard_swish w2", "dw", group=10, pads=[1, 1, 1, 1]),
        node("Mul", "dw root", "scaled"),
        node("Erf", "scaled", "erf"),
        node("Add", "erf one", "raised"),
        node("Mul", "dw raised", "gelu"),
        node("Clip", "gelu one six", "high"),
        node("LeakyRelu", "dw", "leaky", alpha=0.2),
        node("Concat", "high leaky", "cat", axis=1),
        node("Conv", "cat w3", "project"),
        node("Sigmoid", "project", "y"),
    ]
    constants = {
        "w1": kernel(10, 3, 3, 3, 1),
        "b1": weights(10, seed=2, scale=0.3),
        "w2": kernel(10, 1, 3, 3, 3) * np.float32(2),
        "w3": kernel(5, 20, 1, 1, 5) * np.float32(4),
        "zero": np.float32(0),
        "one": np.float32(1),
        "three": np.float32(3),
        "six": np.float32(6),
        "root": np.float32(0.5**0.5),
    }
    return network(nodes, {"x": [2, 3, 9, 7]}, ["y", "hard_swish"], constants)


def gates() -> onnx.ModelProto:
    """Images [2, 3, 9, 7] through products, differences and sums that broadcast: squeeze-and-excitation and others."""
    nodes = [
        node("Conv", "x w1 b1", "stem", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "stem", "pool"),
        node("Conv", "pool w2", "squeeze"),
        node("Relu", "squeeze", "squeezed"),
        node("Conv", "squeezed w3", "excite"),
        node("HardSigmoid", "excite", "gate", alpha=0.25),
        node("Mul", "stem gate", "gated"),
        node("Conv", "stem w4", "mask"),
        node("Mul", "mask gated", "masked"),
        node("Relu", "masked", "masked_r"),
        node("Sub", "masked_r gated", "less"),
        node("AveragePool", "less", "row", kernel_shape=[9, 1]),
        node("Mul", "image row", "shaded"),
        node("Add", "shaded less", "raised"),
        node("Conv", "raised w5", "y"),
        node("Sub", "pool less", "z"),
    ]
    constants = {
        "w1": kernel(10, 3, 3, 3, 1),
        "b1": weights(10, seed=2, scale=0.3),
        "w2": kernel(4, 10, 1, 1, 3),
        "w3": kernel(10, 4, 1, 1, 4),
        "w4": kernel(1, 10, 1, 1, 5),
        "w5": kernel(6, 10, 1, 1, 6),
        "image": weights(10, 1, 7, seed=7),
    }
    return network(nodes, {"x": [2, 3, 9, 7]}, ["y", "z"], constants)


def image_network(nodes: list[onnx.NodeProto], outputs: list[str], **constants: Any) -> onnx.ModelProto:
    """A network on images ``x`` [1, 4, 6, 6], with weights ``w`` [4, 4, 3, 3] and ``p`` [4, 4, 1, 1]."""
    given = {"w": kernel(4, 4, 3, 3, 1), "p": kernel(4, 4, 1, 1, 2), **constants}
    used = {name for each in nodes for name in each.input}
    kept = {name: value for name, value in given.items() if name in used}
    return network(nodes, {"x": [1, 4, 6, 6]}, outputs, kept)


class Noise:
    """A data source: normal samples for every input of a module."""

    labels = None

    def __init__(self, mod: tvm.IRModule, size: int = SAMPLES) -> None:
        rng = np.random.default_rng(3)
        self.size = size
        self._arrays = {
            spec.name: rng.standard_normal((size, *spec.shape[1:])).astype(spec.dtype)
            for spec in io_specs(mod)[0]
        }

    def read(self, indices: np.ndarray) -> Feeds:
        return {name: array[indices] for name, array in self._arrays.items()}

    def digest(self, index: int) -> bytes:
        return b"".join(array[index].tobytes() for array in self._arrays.values())


@dataclass(frozen=True)
class Network:
    """A canonical module with the ranges that its calibration samples gave."""

    mod: tvm.IRModule
    ranges: TensorRanges

    @property
    def names(self) -> list[str]:
        return [operator.name for operator in operators(self.mod)]

    def plan(self, default: str = "w8a8", others: Mapping[str, str] | None = None) -> PrecisionPlan:
        """``default`` everywhere but for ``others``, whose names must exist."""
        unknown = set(others or {}) - set(self.names)
        assert not unknown, f"{unknown} are not among {self.names}"
        chosen = {name: (others or {}).get(name, default) for name in self.names}
        return PrecisionPlan({name: Precision.parse(value) for name, value in chosen.items()})

    def pipeline(self, plan: PrecisionPlan, target: Target | None = None) -> Pipeline:
        return Pipeline(plan, self.ranges, (target or host_target()).instruction)

    def annotate(self, plan: PrecisionPlan | None = None) -> tvm.IRModule:
        return self.pipeline(plan or self.plan()).annotate(self.mod)

    def lower(self, annotated: tvm.IRModule, target: Target | None = None) -> tvm.IRModule:
        return self.pipeline(self.plan(), target).lower(annotated)

    def feeds(self, first: int = 0) -> Feeds:
        """A batch of the calibration samples, from ``first`` on."""
        batch = io_specs(self.mod)[0][0].shape[0]
        return Noise(self.mod).read((first + np.arange(batch)) % SAMPLES)

    def run(self, lowered: tvm.IRModule, feeds: Feeds, target: Target | None = None) -> list[np.ndarray]:
        return runner(lowered, target or host_target())(*feeds.values())


def runner(lowered: tvm.IRModule, target: Target) -> Callable[..., list[np.ndarray]]:
    """A lowered module as a function of arrays, in the order of the network's inputs."""
    built = build(lowered, target)
    machine = relax.VirtualMachine(built.executable, tvm.cpu())
    weights = expanded_weights(machine, built.weights)

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        inputs = (tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays)
        result = machine["main"](*inputs, *weights)
        return [value.numpy() for value in ([result] if hasattr(result, "numpy") else result)]

    return call


def prepare(model: onnx.ModelProto) -> Network:
    """Import and calibrate on noise."""
    mod = import_onnx(model)
    return Network(mod, calibrate(mod, Dataset(Noise(mod)), "minmax", host_target()))


@functools.cache
def prepared(make: Callable[[], onnx.ModelProto]) -> Network:
    """:func:`prepare` once a process for one of the functions above."""
    return prepare(make())
