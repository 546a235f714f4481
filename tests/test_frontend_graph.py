"""From file to graph: constants, shapes, sub-graphs, types and names."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from frontend_networks import (
    assert_agrees,
    assert_canonical,
    kinds,
    network,
    run_canonical,
    weights,
)
from onnx import TensorProto, helper, numpy_helper

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import Operator, import_onnx, io_specs, load_onnx, operators
from tvm_mpq.tensor_spec import TensorSpec

node = helper.make_node


def constant(name, value):
    return node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


# Constants and shapes


def test_shape_arithmetic_is_computed():
    # What PyTorch writes for x.view(x.size(0), -1).
    nodes = [
        node("Shape", ["x"], ["s"]),
        constant("zero", np.int64(0)),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        constant("minus", np.array([-1], np.int64)),
        node("Concat", ["n1", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("Gemm", ["flat", "w"], ["y"]),
    ]
    constants = {"axes": np.array([0], np.int64), "w": weights(12, 5)}
    mod = assert_agrees(network(nodes, {"x": ["N", 3, 4]}, ["y"], constants), {"x": (2, 3, 4)})
    assert kinds(mod) == ["reshape", "matmul"]


def test_size_and_a_part_of_a_shape_are_computed():
    nodes = [
        node("Size", ["x"], ["size"]),
        node("Shape", ["x"], ["tail"], start=1),
        node("Reshape", ["size", "one"], ["size1"]),
        node("Concat", ["size1", "tail"], ["y"], axis=0),
    ]
    model = network(
        nodes,
        {"x": [2, 3, 4]},
        ["y"],
        {"one": np.array([1], np.int64)},
        dtypes={"y": TensorProto.INT64},
    )
    mod = assert_agrees(model)
    assert kinds(mod) == ["constant"]


def test_weights_that_are_computed_from_constants_are_constants():
    nodes = [
        node("DequantizeLinear", ["q", "scale", "zero"], ["w4"]),
        node("Transpose", ["w4"], ["w"], perm=[1, 0]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    constants = {
        "q": np.random.default_rng(0).integers(-128, 128, (5, 4)).astype(np.int8),
        "scale": np.float32(0.05),
        "zero": np.int8(3),
    }
    assert kinds(assert_agrees(network(nodes, {"x": [2, 4]}, ["y"], constants))) == ["matmul"]


@pytest.mark.parametrize(
    "attributes", [{"value_float": 0.5}, {"value_floats": [0.5, 1.5, 2.5]}, {"value_ints": [1, 2, 3]}]
)
def test_constants_of_every_form(attributes):
    cast = node("Cast", ["k"], ["f"], to=TensorProto.FLOAT)
    model = network(
        [node("Constant", [], ["k"], **attributes), cast, node("Mul", ["x", "f"], ["y"])],
        {"x": [2, 3]},
        ["y"],
    )
    assert kinds(assert_agrees(model)) == ["pointwise" if "value_float" in attributes else "mul"]


def test_sparse_initializers():
    model = network([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 4]}, ["y"])
    values = numpy_helper.from_array(np.array([1.5, -2.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 7], np.int64), "w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 2]))
    mod = import_onnx(model)
    x = weights(2, 4)
    dense = np.zeros((4, 2), np.float32)
    dense.reshape(-1)[[1, 7]] = [1.5, -2.0]
    np.testing.assert_allclose(run_canonical(mod, {"x": x})[0], x @ dense, rtol=1e-6)


def test_nodes_that_no_output_needs_are_gone():
    nodes = [
        node("Relu", ["x"], ["y"]),
        node("Sigmoid", ["x"], ["unused"]),
        node("NonZero", ["x"], ["unused_too"]),
    ]
    with pytest.raises(MpqError, match="NonZero"):
        import_onnx(network(nodes, {"x": [2, 3]}, ["unused_too"], dtypes={"unused_too": TensorProto.INT64}))
    assert kinds(assert_agrees(network(nodes, {"x": [2, 3]}, ["y"]))) == ["activation"]


# Sub-graphs and functions


def branch(name, nodes, output, constants=None):
    return helper.make_graph(
        nodes,
        name,
        [],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, key) for key, value in (constants or {}).items()],
    )


def if_node():
    then = branch("then", [node("MatMul", ["x", "w"], ["t"], name="dense")], "t", {"w": weights(4, 3)})
    other = branch("else", [node("Sigmoid", ["x"], ["e"])], "e")
    return node("If", ["condition"], ["r"], name="choice", then_branch=then, else_branch=other)


@pytest.mark.parametrize(("condition", "expected"), [(True, ["matmul"]), (False, ["sigmoid"])])
def test_if_with_a_known_condition_is_its_branch(condition, expected):
    nodes = [
        node("Identity", ["r"], ["y"]),
    ]
    model = network([constant("condition", np.array(condition)), if_node(), *nodes], {"x": [2, 4]}, ["y"])
    assert kinds(assert_agrees(model)) == expected


def test_if_whose_branch_returns_what_is_around_it():
    then = branch("then", [node("Identity", ["x"], ["t"])], "t")
    other = branch("else", [node("Sigmoid", ["x"], ["e"])], "e")
    choice = node("If", ["condition"], ["r"], then_branch=then, else_branch=other)
    model = network(
        [constant("condition", np.array(True)), choice, node("Relu", ["r"], ["y"])], {"x": [2, 4]}, ["y"]
    )
    assert kinds(assert_agrees(model)) == ["activation"]


def test_functions_of_the_file_are_inlined():
    function = helper.make_function(
        "local",
        "Dense",
        ["a", "b"],
        ["c"],
        [node("MatMul", ["a", "b"], ["m"], name="inner"), node("Relu", ["m"], ["c"])],
        [helper.make_opsetid("", 17)],
    )
    model = network(
        [node("Dense", ["x", "w"], ["y"], domain="local", name="outer")],
        {"x": [2, 4]},
        ["y"],
        {"w": weights(4, 3)},
        domains=["local"],
    )
    model.functions.append(function)
    assert kinds(assert_agrees(model)) == ["matmul"]


# Types


@pytest.mark.parametrize(
    ("code", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)]
)
def test_other_floats_compute_in_float32_between_casts(code, dtype):
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"], name="dense"),
        node("Cast", ["a"], ["c"], to=TensorProto.FLOAT),
        node("Relu", ["c"], ["r"]),
        node("Cast", ["r"], ["y"], to=code),
    ]
    constants = {"w": weights(4, 3).astype(dtype), "b": weights(3).astype(dtype)}
    model = network(nodes, {"x": [2, 4]}, ["y"], constants, dtypes={"x": code, "y": code})
    mod = assert_agrees(model, tolerance=1e-3 if dtype is np.float16 else 1e-6)
    assert kinds(mod) == ["cast", "matmul", "cast"]
    assert [spec.dtype for specs in io_specs(mod) for spec in specs] == [np.dtype(dtype).name] * 2


def test_token_ids():
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="embedding"),
        node("MatMul", ["e", "w"], ["m"], name="dense"),
        node("Unsqueeze", ["mask", "axis"], ["u"]),
        node("Cast", ["u"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["m", "f"], ["y"]),
    ]
    constants = {"table": weights(10, 8), "w": weights(8, 6), "axis": np.array([2], np.int64)}
    model = network(
        nodes,
        {"ids": [1, 7], "mask": [1, 7]},
        ["y"],
        constants,
        dtypes={"ids": TensorProto.INT64, "mask": TensorProto.BOOL},
    )
    feeds = {"ids": np.array([[3, 1, 4, 1, 5, 9, 2]]), "mask": np.array([[True] * 4 + [False] * 3])}
    mod = assert_agrees(model, feeds=feeds)
    assert kinds(mod) == ["gather", "matmul", "unsqueeze", "cast", "mul"]


# Operators of several outputs, and outputs of the network


def test_several_outputs_are_several_operators():
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b", "c"], axis=1, name="split"),
        node("Mul", ["a", "c"], ["y"]),
    ]
    mod = assert_agrees(network(nodes, {"x": [2, 7]}, ["y"], {"sizes": np.array([3, 1, 3], np.int64)}))
    assert [(o.name, o.kind) for o in operators(mod)] == [
        ("split", "slice"),
        ("split.2", "slice"),
        ("Mul_1", "mul"),
    ]


def test_two_outputs_of_different_types():
    top = node("TopK", ["x", "k"], ["values", "places"], name="top")
    model = network(
        [top],
        {"x": [2, 9]},
        ["values", "places"],
        {"k": np.array([3], np.int64)},
        dtypes={"places": TensorProto.INT64},
    )
    assert [o.name for o in operators(assert_agrees(model))] == ["top", "top.1"]


def test_outputs_that_no_node_makes():
    nodes = [
        node("Identity", ["x"], ["same"]),
        node("Identity", ["k"], ["fixed"]),
        node("Relu", ["x"], ["y"]),
    ]
    mod = assert_agrees(network(nodes, {"x": [2, 3]}, ["same", "fixed", "y"], {"k": weights(4)}))
    assert sorted(kinds(mod)) == ["activation", "constant", "identity"]
    assert [spec.name for spec in io_specs(mod)[1]] == ["same", "fixed", "y"]


def test_one_tensor_as_two_outputs():
    nodes = [node("Relu", ["x"], ["y"]), node("Identity", ["y"], ["z"])]
    assert kinds(assert_agrees(network(nodes, {"x": [2, 3]}, ["y", "z"]))) == ["activation"]


def test_an_unused_input_stays():
    mod = import_onnx(network([node("Relu", ["x"], ["y"])], {"x": [2, 3], "unused": [1]}, ["y"]))
    assert_canonical(mod)
    assert [spec.name for spec in io_specs(mod)[0]] == ["x", "unused"]


# Names


def test_names_are_kept_and_made_unique():
    nodes = [
        node("Softmax", ["in:0"], ["a"], name="/block.0/act fn"),
        node("Softmax", ["a"], ["b"]),
        node("Softmax", ["b"], ["c"], name="/block/0/act_fn"),
        node("Softmax", ["c"], ["d"], name="/block/0/act_fn"),
        node("Softmax", ["d"], ["out:0"], name="3·x"),
    ]
    # ONNX Runtime refuses two nodes of one name; exporters write them all the same.
    mod = import_onnx(network(nodes, {"in:0": [2, 3]}, ["out:0"]))
    assert_canonical(mod)
    assert operators(mod) == [
        Operator("/block.0/act fn", "softmax", "block_0_act_fn"),
        Operator("Softmax_1", "softmax", "Softmax_1"),
        Operator("/block/0/act_fn", "softmax", "block_0_act_fn_1"),
        Operator("/block/0/act_fn_1", "softmax", "block_0_act_fn_1_1"),
        Operator("3·x", "softmax", "_3_x"),
    ]
    assert io_specs(mod) == (
        [TensorSpec("in:0", (2, 3), "float32")],
        [TensorSpec("out:0", (2, 3), "float32")],
    )


def test_an_operator_called_main():
    mod = assert_agrees(network([node("Sigmoid", ["x"], ["y"], name="main")], {"x": [2, 3]}, ["y"]))
    assert operators(mod)[0].name == "main"
    assert operators(mod)[0].global_var_name != "main"


# Files


def test_old_files_list_initializers_among_the_inputs():
    model = network(
        [node("MatMul", ["x", "w"], ["y"])], {"x": [2, 4], "w": [4, 3]}, ["y"], {"w": weights(4, 3)}, 8
    )
    model.ir_version = 3
    mod = assert_agrees(model)
    assert [spec.name for spec in io_specs(mod)[0]] == ["x"]


def test_external_weights_are_read(tmp_path):
    model = network([node("MatMul", ["x", "w"], ["y"])], {"x": ["N", 64]}, ["y"], {"w": weights(64, 32)})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="model.bin")
    assert (tmp_path / "model.bin").stat().st_size >= 64 * 32 * 4
    mod = import_onnx(path, {"x": (3, 64)})
    x = weights(3, 64, seed=1)
    np.testing.assert_allclose(run_canonical(mod, {"x": x})[0], x @ weights(64, 32), rtol=1e-4, atol=1e-4)


def test_load_fixes_and_infers_shapes_and_leaves_the_file_alone(tmp_path):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])]
    path = tmp_path / "model.onnx"
    onnx.save(network(nodes, {"x": ["N", 3, "H", None]}, ["y"], {"w": weights(4, 3, 3, 3)}), path)
    before = path.read_bytes()
    loaded = load_onnx(path, {"x": (2, 3, 8, 9)})
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*loaded.graph.input, *loaded.graph.value_info, *loaded.graph.output)
    }
    assert shapes == {"x": (2, 3, 8, 9), "a": (2, 4, 6, 7), "y": (2, 4, 6, 7)}
    assert path.read_bytes() == before


def test_shapes_written_for_another_batch_do_not_disturb():
    model = network(
        [node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])],
        {"x": ["N", 3, 8, 8]},
        ["y"],
        {"w": weights(4, 3, 3, 3)},
    )
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 4, 6, 6]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6]))
    mod = import_onnx(model, {"x": (5, 3, 8, 8)})
    assert io_specs(mod)[1] == [TensorSpec("y", (5, 4, 6, 6), "float32")]


def test_a_model_in_memory_is_not_changed():
    model = network([node("Relu", ["x"], ["y"])], {"x": ["N", 3]}, ["y"])
    before = model.SerializeToString(deterministic=True)
    import_onnx(model, {"x": (2, 3)})
    assert model.SerializeToString(deterministic=True) == before
