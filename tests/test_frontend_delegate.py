"""Operators without a canonical form: TVM's importer makes them, ONNX Runtime must agree."""

from __future__ import annotations

import numpy as np
import pytest
from frontend_networks import assert_agrees, calls, kinds, network, weights
from onnx import TensorProto, helper

from tvm_mpq.frontend import operators

node = helper.make_node
SCALES = {"s": np.array([1, 1, 2, 1.5], np.float32)}


@pytest.mark.parametrize(
    ("model_node", "constants", "opset"),
    [
        (
            node("LayerNormalization", ["x", "g", "b"], ["y"], axis=2),
            {"g": weights(6, 8), "b": weights(6, 8)},
            17,
        ),
        (node("InstanceNormalization", ["x", "g", "b"], ["y"]), {"g": weights(4), "b": weights(4)}, 17),
        (node("PRelu", ["x", "s"], ["y"]), {"s": weights(4, 1, 1)}, 17),
        (node("DepthToSpace", ["x"], ["y"], blocksize=2, mode="CRD"), {}, 17),
        (node("Resize", ["x", "", "s"], ["y"], mode="cubic", axes=[2, 3]), {"s": SCALES["s"][2:]}, 18),
        (node("LogSoftmax", ["x"], ["y"], axis=2), {}, 11),
        (node("Pad", ["x", "p"], ["y"], mode="reflect"), {"p": np.array([0, 0, 1, 2, 0, 0, 1, 0])}, 17),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else "",
)
def test_float_operators(model_node, constants, opset):
    mod = assert_agrees(network([model_node], {"x": [2, 4, 6, 8]}, ["y"], constants, opset))
    assert kinds(mod) == [model_node.op_type.lower()]


@pytest.mark.parametrize(
    ("model_node", "constants", "opset", "kind"),
    [
        (node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 3.0]), {}, 8, "resize_nearest"),
        (node("Upsample", ["x", "s"], ["y"], mode="linear"), SCALES, 9, "resize_linear"),
        (node("Resize", ["x", "s"], ["y"], mode="linear"), SCALES, 10, "resize_linear"),
        (node("Slice", ["x"], ["y"], axes=[-1, 2], starts=[1, -5], ends=[9999, -1]), {}, 9, "slice"),
    ],
)
def test_older_forms_of_an_operator(model_node, constants, opset, kind):
    assert kinds(assert_agrees(network([model_node], {"x": [2, 4, 6, 8]}, ["y"], constants, opset))) == [kind]


def test_same_helper_functions_of_two_operators_are_kept_apart_or_shared():
    # Each of these brings TIR functions of its own; names must not clash in the common module.
    nodes = [
        node("Resize", ["x", "", "s"], ["a"], mode="cubic"),
        node("TopK", ["a", "k"], ["v", "i"], name="top"),
        node("Resize", ["v", "", "s"], ["b"], mode="cubic"),
        node("TopK", ["b", "k"], ["y", "j"], name="top2"),
    ]
    constants = {**SCALES, "k": np.array([4], np.int64)}
    mod = assert_agrees(network(nodes, {"x": [1, 2, 4, 6]}, ["y"], constants))
    assert kinds(mod) == ["resize", "topk", "resize", "topk"]


@pytest.mark.parametrize("condition", [True, False])
def test_if_with_a_computed_condition(condition):
    output = helper.make_tensor_value_info
    then = helper.make_graph([node("MatMul", ["h", "w"], ["t"])], "then", [], [output("t", 1, None)])
    other = helper.make_graph([node("Concat", ["h", "h"], ["e"], axis=1)], "else", [], [output("e", 1, None)])
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("If", ["c"], ["y"], name="choice", then_branch=then, else_branch=other),
    ]
    model = network(
        nodes, {"x": [2, 4], "c": []}, ["y"], {"w": weights(4, 8)}, dtypes={"c": TensorProto.BOOL}
    )
    assert kinds(assert_agrees(model, feeds={"c": np.array(condition)})) == ["activation", "if"]


def test_constants_of_imported_operators_are_inside_them():
    nodes = [node("PRelu", ["x", "s"], ["y"], name="slope")]
    mod = assert_agrees(network(nodes, {"x": [1, 4, 2, 2]}, ["y"], {"s": weights(4, 1, 1)}))
    (operator,) = operators(mod)
    assert len(mod[operator.global_var_name].params) == 1
    assert calls(mod[operator.global_var_name])
