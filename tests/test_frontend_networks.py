"""Whole networks: the canonical module equals ONNX Runtime, and holds what the architecture says."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest
from frontend_networks import assert_agrees, kinds

from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.tensor_spec import TensorSpec

ROOT = Path(__file__).parents[1]
LITE0 = ROOT / ".." / "shared" / "models" / "efficientnet-lite0.onnx"
SAMPLE = ROOT / "tvm_mpq" / "sample" / "fashion.onnx"
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.mark.skipif(not LITE0.is_file(), reason="needs the shared EfficientNet-Lite0")
def test_efficientnet_lite0():
    model = onnx.load(LITE0)
    mod = assert_agrees(model, {"input": (1, 3, 224, 224)})
    assert Counter(kinds(mod)) == {
        "conv2d": 33,
        "depthwise_conv2d": 16,
        "add": 9,
        "global_avg_pool": 1,
        "reshape": 1,
        "matmul": 1,
    }
    names = {node.name for node in model.graph.node}
    assert all(operator.name in names for operator in operators(mod))
    assert io_specs(mod) == (
        [TensorSpec("input", (1, 3, 224, 224), "float32")],
        [TensorSpec("logits", (1, 1000), "float32")],
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "mobilenetv2",
            {
                "conv2d": 35,
                "depthwise_conv2d": 17,
                "add": 10,
                "global_avg_pool": 1,
                "reshape": 1,
                "matmul": 1,
            },
        ),
        (
            "resnet18",
            {"conv2d": 20, "max_pool2d": 1, "add": 8, "global_avg_pool": 1, "reshape": 1, "matmul": 1},
        ),
    ],
)
def test_benchmark_networks(name, expected):
    from networks import make_network

    assert Counter(kinds(assert_agrees(make_network(name)))) == expected


def test_the_embedded_sample():
    # Exported with batch norm and constants as nodes: 24 of them must be gone.
    model = onnx.load(SAMPLE)
    mod = assert_agrees(model)
    operator_types = Counter(node.op_type for node in model.graph.node)
    found = Counter(kinds(mod))
    assert operator_types["BatchNormalization"] == operator_types["Conv"]
    assert found["conv2d"] + found["depthwise_conv2d"] == operator_types["Conv"]
    assert set(found) == {"conv2d", "depthwise_conv2d", "add", "global_avg_pool", "reshape", "matmul"}
