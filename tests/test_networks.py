"""The benchmark's networks are the architectures they claim to be, and behave like trained ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import networks

from tvm_mpq.errors import MpqError

# Weights and biases of the torchvision model with batch norm folded: its parameters less one vector a norm.
PARAMETERS = {"mobilenetv2": 3_487_816, "resnet18": 11_684_712, "resnet50": 25_530_472}
# Multiply-adds torchvision documents for its weights ("GFLOPS" there), to two decimals.
GIGA_MACS = {"mobilenetv2": 0.30, "resnet18": 1.81, "resnet50": 4.09}


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    return shapes | {t.name: list(t.dims) for t in model.graph.initializer}


def macs(model: onnx.ModelProto) -> int:
    shapes, total = shapes_of(model), 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = shapes[node.input[1]]
            per_output = int(np.prod(weight[1:]))
            total += per_output * int(np.prod(shapes[node.output[0]]))
    return total


@pytest.mark.parametrize("name", PARAMETERS)
def test_is_the_named_architecture(name: str) -> None:
    model = networks.make_network(name)
    weights = [t for t in model.graph.initializer if not t.name.startswith("relu6.")]
    assert sum(int(np.prod(t.dims)) for t in weights) == PARAMETERS[name]
    assert round(macs(model) / 1e9, 2) == GIGA_MACS[name]
    assert shapes_of(model)["input"] == [1, 3, 224, 224]
    assert shapes_of(model)["logits"] == [1, 1000]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_activation_is_of_order_one(name: str) -> None:
    model = networks.make_network(name, seed=3)
    infos = {v.name: v for v in model.graph.value_info}
    model.graph.output.extend(infos[o] for node in model.graph.node for o in node.output if o in infos)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    for value, output in zip(session.run(None, {"input": x}), session.get_outputs(), strict=True):
        assert 0.2 < np.sqrt(np.mean(np.square(value))) < 4, output.name


def test_a_seed_names_the_weights() -> None:
    first, again, other = (networks.make_network("resnet18", seed).SerializeToString() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert networks.main(["mobilenetv2", str(tmp_path / "m.onnx")]) == 0
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    assert networks.main(["resnet19", str(tmp_path / "r.onnx")]) == 2
    assert "unknown network 'resnet19': use one of" in capsys.readouterr().err
    assert not (tmp_path / "r.onnx").exists()


def test_loaded_network_has_batch_one() -> None:
    try:
        model = networks.load_network("efficientnet-lite0")
    except MpqError as error:
        pytest.skip(str(error))
    shapes = shapes_of(model)
    assert shapes["input"] == [1, 3, 224, 224]
    assert shapes["logits"] == [1, 1000]
    assert 0 not in np.concatenate([shapes[o] for node in model.graph.node for o in node.output])
