"""The architecture of the embedded sample, and its ONNX file.

Small, but of the parts that deployed networks are made of: plain residual blocks (ResNet, He et al. 2015),
inverted residual blocks of depthwise convolutions and linear bottlenecks (MobileNetV2, Sandler et al.
2018), ReLU, ReLU6, strided layers, global average pooling and a classifier.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Set

import onnx
import torch
from torch import Tensor, nn

INPUT_SHAPE = (1, 1, 28, 28)
OPSET = 17


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class ConvBlock(nn.Module):
    """3×3 or 1×1 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = _conv(inputs, outputs, kernel, stride)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    """Two 3×3 convolutions around an identity, if any; the ReLU follows the addition."""

    def __init__(self, channels: int, identity: bool = True) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(channels, channels, 3)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(x + y if self.identity else y)


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise, linear 1×1 projection; an identity around it where shapes allow."""

    def __init__(
        self, inputs: int, outputs: int, hidden: int, stride: int = 1, identity: bool = True
    ) -> None:
        super().__init__()
        self.expand = _conv(inputs, hidden, 1)
        self.expand_norm = nn.BatchNorm2d(hidden)
        self.expand_relu6 = nn.ReLU6(inplace=True)
        self.depthwise = _conv(hidden, hidden, 3, stride, groups=hidden)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.depthwise_relu6 = nn.ReLU6(inplace=True)
        self.project = _conv(hidden, outputs, 1)
        self.project_norm = nn.BatchNorm2d(outputs)
        self.identity = identity and stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand_relu6(self.expand_norm(self.expand(x)))
        y = self.depthwise_relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.identity else y


class SampleNetwork(nn.Module):
    """Image float32 [N, 1, 28, 28] → logits float32 [N, 10].

    Without ``identities`` its layers are the same, but follow each other with no way around them.
    """

    def __init__(self, identities: bool = True) -> None:
        super().__init__()
        self.stem = ConvBlock(1, 16, 3)  # 28×28
        self.down = ConvBlock(16, 24, 3, stride=2)  # 14×14
        self.residual1 = Residual(24, identities)
        self.inverted1 = InvertedResidual(24, 64, 72, stride=2)  # 7×7
        self.inverted2 = InvertedResidual(64, 64, 128, identity=identities)
        self.residual2 = Residual(64, identities)
        self.head = ConvBlock(64, 128, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.residual1(self.down(self.stem(image)))
        x = self.inverted2(self.inverted1(x))
        x = self.head(self.residual2(x))
        return self.classifier(self.flatten(self.pool(x)))


def parameter_count(network: nn.Module) -> int:
    """How many numbers training changes (running statistics of batch norm are not among them)."""
    return sum(parameter.numel() for parameter in network.parameters())


def to_onnx(network: nn.Module, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The network for inference on one image; batch norm stays a node, for the frontend to fold."""
    network.eval()
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network.to(memory_format=torch.contiguous_format),
            (torch.zeros(INPUT_SHAPE),),
            stream,
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            # The newer exporter folds batch norm away.
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    model = onnx.load_from_string(stream.getvalue())
    leaves = {name for name, module in network.named_modules() if not any(module.children())}
    for node in model.graph.node:
        node.name = _readable(node.name, leaves)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


def _readable(name: str, leaves: Set[str]) -> str:
    """A node named by its module: ``/stem/conv/Conv`` → ``stem.conv``, ``/stage/Add`` → ``stage.add``.

    A leaf module makes one node, and the constants that node takes, which keep their own name.
    """
    module, _, kind = name.strip("/").replace("/", ".").rpartition(".")
    return module if module in leaves and not kind.startswith("Constant") else f"{module}.{kind.lower()}"
