"""The networks that the benchmark times: well-known architectures as ONNX graphs made on the spot.

MobileNetV2 and the ResNets get random weights: latency does not depend on their values as long as activations
stay in an ordinary range. EfficientNet-Lite0 is read from the shared models beside the repository.

    python scripts/networks.py resnet18 resnet18.onnx
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"
FILES = {"efficientnet-lite0": SHARED / "models" / "efficientnet-lite0.onnx"}
# Restores the half of the power that ReLU removes (He et al. 2015).
_HE = 2.0


class _Graph:
    """Collects nodes and float32 initializers; tensors are named after the node that makes them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.float32]) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{name}.output"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def normal(self, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
        return (self.random.standard_normal(shape) * deviation).astype(np.float32)

    def conv(
        self,
        name: str,
        x: str,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        power: float = _HE,
    ) -> str:
        """A convolution (batch norm folded into its bias); ``power`` is output over input mean square."""
        inputs, outputs = channels
        fan_in = inputs // groups * kernel * kernel
        weight = self.normal((outputs, inputs // groups, kernel, kernel), math.sqrt(power / fan_in))
        bias = self.normal((outputs,), 0.1)
        operands = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self.node(
            "Conv",
            name,
            operands,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            dilations=[1, 1],
            group=groups,
        )

    def relu(self, name: str, x: str) -> str:
        return self.node("Relu", name, [x])

    def relu6(self, name: str, x: str) -> str:
        # Bounds are one pair of initializers for the whole network, as exporters write them.
        if not any(tensor.name == "relu6.low" for tensor in self.initializers):
            self.constant("relu6.low", np.array(0, np.float32))
            self.constant("relu6.high", np.array(6, np.float32))
        return self.node("Clip", name, [x, "relu6.low", "relu6.high"])

    def classifier(self, x: str, channels: int, classes: int = 1000) -> None:
        """Global average pool, flatten and a linear layer; its output is the network's ``logits``."""
        pooled = self.node("GlobalAveragePool", "avgpool", [x])
        flat = self.node("Flatten", "flatten", [pooled], axis=1)
        weight = self.constant("fc.weight", self.normal((classes, channels), math.sqrt(_HE / channels)))
        bias = self.constant("fc.bias", self.normal((classes,), 0.1))
        self.nodes.append(helper.make_node("Gemm", [flat, weight, bias], ["logits"], name="fc", transB=1))

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 224, 224])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        return model


def _basic_block(g: _Graph, name: str, x: str, inputs: int, width: int, stride: int) -> tuple[str, int]:
    h = g.relu(f"{name}.relu1", g.conv(f"{name}.conv1", x, (inputs, width), 3, stride))
    h = g.conv(f"{name}.conv2", h, (width, width), 3, power=0.25)
    return _join(g, name, x, h, inputs, width, stride), width


def _bottleneck(g: _Graph, name: str, x: str, inputs: int, width: int, stride: int) -> tuple[str, int]:
    outputs = 4 * width
    h = g.relu(f"{name}.relu1", g.conv(f"{name}.conv1", x, (inputs, width), 1))
    # torchvision strides the 3×3 convolution ("v1.5"), not the first 1×1 of the paper.
    h = g.relu(f"{name}.relu2", g.conv(f"{name}.conv2", h, (width, width), 3, stride))
    h = g.conv(f"{name}.conv3", h, (width, outputs), 1, power=0.25)
    return _join(g, name, x, h, inputs, outputs, stride), outputs


def _join(g: _Graph, name: str, x: str, h: str, inputs: int, outputs: int, stride: int) -> str:
    if stride != 1 or inputs != outputs:
        x = g.conv(f"{name}.downsample", x, (inputs, outputs), 1, stride, power=1.0)
    return g.relu(f"{name}.relu", g.node("Add", f"{name}.add", [h, x]))


def _resnet(
    block: Callable[[_Graph, str, str, int, int, int], tuple[str, int]], depths: tuple[int, ...], g: _Graph
) -> None:
    # The maximum over 3×3 windows raises the mean square about fourfold, so the stem starts lower.
    x = g.relu("relu1", g.conv("conv1", "input", (3, 64), 7, 2, power=0.5))
    x = g.node("MaxPool", "maxpool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            x, channels = block(g, f"layer{stage + 1}.{index}", x, channels, 64 << stage, stride)
    g.classifier(x, channels)


def _mobilenetv2(g: _Graph) -> None:
    x = g.relu6("features.0.relu6", g.conv("features.0.conv", "input", (3, 32), 3, 2))
    inputs, index = 32, 1
    # Expansion, channels, repeats, stride: table 2 of Sandler et al. 2018.
    for expansion, outputs, repeats, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = _inverted_residual(g, f"features.{index}", x, inputs, outputs, expansion, stride)
            inputs, index = outputs, index + 1
    x = g.relu6(f"features.{index}.relu6", g.conv(f"features.{index}.conv", x, (inputs, 1280), 1))
    g.classifier(x, 1280)


def _inverted_residual(
    g: _Graph, name: str, x: str, inputs: int, outputs: int, expansion: int, stride: int
) -> str:
    width, h = inputs * expansion, x
    if expansion != 1:
        h = g.relu6(f"{name}.expand.relu6", g.conv(f"{name}.expand", h, (inputs, width), 1))
    h = g.conv(f"{name}.depthwise", h, (width, width), 3, stride, groups=width)
    h = g.relu6(f"{name}.depthwise.relu6", h)
    residual = stride == 1 and inputs == outputs
    h = g.conv(f"{name}.project", h, (width, outputs), 1, power=0.25 if residual else 1.0)
    return g.node("Add", f"{name}.add", [x, h]) if residual else h


_BUILDERS: dict[str, Callable[[_Graph], None]] = {
    "mobilenetv2": _mobilenetv2,
    "resnet18": lambda g: _resnet(_basic_block, (2, 2, 2, 2), g),
    "resnet50": lambda g: _resnet(_bottleneck, (3, 4, 6, 3), g),
}
NETWORKS = (*FILES, *_BUILDERS)


def make_network(name: str, seed: int = 0) -> onnx.ModelProto:
    """The torchvision architecture ``name`` with random weights drawn from ``seed``.

    ``name`` is ``mobilenetv2``, ``resnet18`` or ``resnet50``. Input ``input`` float32 [1, 3, 224, 224] of
    about unit variance, output ``logits`` float32 [1, 1000], opset 13, batch norm folded, activations of
    order 1. Raises MpqError for another name.
    """
    if name not in _BUILDERS:
        raise MpqError(f"unknown network {name!r}: use one of {', '.join(_BUILDERS)}")
    graph = _Graph(seed)
    _BUILDERS[name](graph)
    return graph.model(name)


def load_network(name: str, seed: int = 0) -> onnx.ModelProto:
    """A network of :data:`NETWORKS` with batch 1, made by :func:`make_network` or read from a file.

    Raises MpqError when the name is unknown or the file is absent.
    """
    if name not in FILES:
        if name not in _BUILDERS:
            raise MpqError(f"unknown network {name!r}: use one of {', '.join(NETWORKS)}")
        return make_network(name, seed)
    path = FILES[name].resolve()
    if not path.is_file():
        raise MpqError(
            f"{name} is not at {path}: put the file there, or choose one of {', '.join(_BUILDERS)}"
        )
    return fix_batch(onnx.load(path))


def fix_batch(model: onnx.ModelProto, batch: int = 1) -> onnx.ModelProto:
    """Set the first dimension of inputs and outputs to ``batch``, in place, and infer all shapes again."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write one of the benchmark's networks as an ONNX file.")
    parser.add_argument("network", help=", ".join(NETWORKS))
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    options = parser.parse_args(arguments)
    try:
        write_beside(options.output, load_network(options.network, options.seed).SerializeToString())
    except MpqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
