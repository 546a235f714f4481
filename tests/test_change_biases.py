"""Biases change where they are, appear where they were not, and nothing else does."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tvm import IRModule

from tvm_mpq.frontend import import_onnx
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.change_biases import ChangeBiases
from tvm_mpq.transform.operator_body import OperatorBody, read_body


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> IRModule:
    random = np.random.default_rng(0)
    weights = {
        "w0": random.normal(size=(4, 2, 1, 1)),
        "b0": random.normal(size=4),
        "w1": random.normal(size=(4, 4, 3, 3)),
        "w2": random.normal(size=(4, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["y0"], "first"),
        helper.make_node("Clip", ["y0", "lo", "hi"], ["y1"], "six"),
        helper.make_node("Conv", ["y1", "w1"], ["y2"], "second"),
        helper.make_node("Relu", ["y2"], ["y3"], "relu"),
        helper.make_node("GlobalAveragePool", ["y3"], ["y4"], "pool"),
        helper.make_node("Flatten", ["y4"], ["y5"], "flat"),
        helper.make_node("MatMul", ["y5", "w2"], ["z"], "last"),
    ]
    initializers = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    initializers += [
        numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("lo", 0.0), ("hi", 6.0))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 5])],
        initializers,
    )
    path = tmp_path_factory.mktemp("biases") / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return import_onnx(path)


def bodies(mod: IRModule) -> dict[str, OperatorBody]:
    weighted = ("conv2d", "matmul")
    return {
        attr.text(f, attr.OPERATOR): read_body(f)
        for _, f, _ in attr.calls(mod)
        if attr.text(f, attr.KIND) in weighted
    }


def test_biases_change_and_nothing_else_does(module: IRModule) -> None:
    changes = {"first": np.arange(4.0), "second": np.full(4, -2.0), "last": np.arange(5.0)}
    before, after = bodies(module), bodies(ChangeBiases(changes)(module))
    assert before["first"].bias is not None
    np.testing.assert_allclose(after["first"].bias, before["first"].bias + changes["first"], rtol=1e-6)
    for name in ("second", "last"):
        assert before[name].bias is None
        np.testing.assert_array_equal(after[name].bias, changes[name])
    for name, body in before.items():
        np.testing.assert_array_equal(after[name].weight, body.weight)
        assert (after[name].low, after[name].high) == (body.low, body.high)
        assert str(after[name].root.attrs) == str(body.root.attrs)
    assert (after["first"].high, after["second"].high) == (6.0, np.inf)
    assert [attr.text(f, attr.OPERATOR) for _, f, _ in attr.calls(ChangeBiases(changes)(module))] == [
        attr.text(f, attr.OPERATOR) for _, f, _ in attr.calls(module)
    ]


def test_unknown_operators_are_a_mistake(module: IRModule) -> None:
    with pytest.raises(KeyError, match="missing"):
        ChangeBiases({"missing": np.zeros(4)})(module)
