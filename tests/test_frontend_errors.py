"""Every mistake in a network: one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_networks import batch_norm, batch_norm_node, network, weights
from onnx import TensorProto, helper

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx, load_onnx

node = helper.make_node


def message(action) -> str:
    with pytest.raises(MpqError) as caught:
        action()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def relu(shape) -> onnx.ModelProto:
    return network([node("Relu", ["input"], ["y"])], {"input": shape}, ["y"])


# Files


def test_no_such_file(tmp_path):
    path = tmp_path / "absent.onnx"
    assert message(lambda: load_onnx(path)) == f"cannot read {path}: No such file or directory"


def test_a_folder(tmp_path):
    assert message(lambda: load_onnx(tmp_path)) == f"cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 not a network", b"\x89PNG\r\n\x1a\n" * 20, b'{"a": 1}\n', b"\0" * 64]
)
def test_not_onnx(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert message(lambda: load_onnx(path)) == f"{path} is not an ONNX file, or is truncated"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, share):
    model = network([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 64]}, ["y"], {"w": weights(64, 64)})
    content = model.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    assert message(lambda: load_onnx(path)) == f"{path} is not an ONNX file, or is truncated"


def external(folder: Path) -> Path:
    model = network([node("MatMul", ["x", "w"], ["y"])], {"x": [2, 64]}, ["y"], {"w": weights(64, 64)})
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.bin")
    return folder / "m.onnx"


def test_external_weights_missing(tmp_path):
    path = external(tmp_path)
    (tmp_path / "m.bin").unlink()
    text = message(lambda: load_onnx(path))
    assert text.startswith(f"{path}: cannot read its external weights: ")
    assert "m.bin" in text


def test_external_weights_truncated(tmp_path):
    path = external(tmp_path)
    (tmp_path / "m.bin").write_bytes((tmp_path / "m.bin").read_bytes()[:1000])
    assert message(lambda: load_onnx(path)).startswith(f"{path}: ")


def test_external_weights_outside_the_folder(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = external(inner)
    model = onnx.load(path, load_external_data=False)
    (inner / "m.bin").rename(tmp_path / "m.bin")
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../m.bin"
    path.write_bytes(model.SerializeToString())
    assert message(lambda: load_onnx(path)).startswith(f"{path}: cannot read its external weights: ")


def test_invalid_network():
    model = network([node("Relu", ["nowhere"], ["y"])], {"x": [2, 3]}, ["y"])
    text = message(lambda: import_onnx(model))
    assert text.startswith("the network is not valid ONNX: ")
    assert "nowhere" in text


def test_old_opset():
    text = message(lambda: import_onnx(network([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], opset=6)))
    assert text.startswith("the network uses ONNX opset 6, older than 7: convert it first")


# Shapes


def test_open_shape_names_the_flag():
    assert message(lambda: import_onnx(relu(["N", 3, 224, None]))) == (
        "an input has no fixed shape: add --input-shape input:1,3,224,1 (or other sizes in place of 1)"
    )


def test_unknown_rank_names_the_flag():
    assert "--input-shape input:1 " in message(lambda: import_onnx(relu(None)))


def test_all_open_inputs_are_named():
    model = network([node("Add", ["a", "b:0"], ["y"])], {"a": ["N", 3], "b:0": [-1, 3]}, ["y"])
    assert message(lambda: import_onnx(model)) == (
        "2 inputs have no fixed shape: add --input-shape a:1,3 --input-shape b:0:1,3 "
        "(or other sizes in place of 1)"
    )


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"inptu": (1, 3)}, "the network has no input 'inptu'; its inputs are: input"),
        ({"input": (1, 3, 4)}, "shape 1,3,4 given for input 'input' has 3 axes; the network says 2: ?,3"),
        ({"input": (1, 4)}, "shape 1,4 given for input 'input' contradicts the network's ?,3"),
        ({"input": (0, 3)}, "shape 0,3 given for input 'input': every size must be at least 1"),
    ],
)
def test_shapes_that_do_not_fit(shapes, expected):
    assert message(lambda: import_onnx(relu(["N", 3]), shapes)) == expected


def test_shape_that_the_operators_refuse():
    model = network(
        [node("MatMul", ["x", "w"], ["y"], name="dense")], {"x": [2, "C"]}, ["y"], {"w": weights(4, 3)}
    )
    text = message(lambda: import_onnx(model, {"x": (2, 5)}))
    assert "MatMul" in text
    assert "'dense'" in text


def test_image_too_small_for_the_kernel():
    model = network(
        [node("Conv", ["x", "w"], ["y"], name="first")],
        {"x": [1, 3, "H", "W"]},
        ["y"],
        {"w": weights(4, 3, 5, 5)},
    )
    text = message(lambda: import_onnx(model, {"x": (1, 3, 3, 3)}))
    assert text == (
        "operator Conv (node 'first') gives an empty result, [1, 4, -1, -1]: "
        "the input shapes are too small for it"
    )


def test_inputs_that_are_no_tensors():
    model = relu([2, 3])
    model.graph.input.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None))
    assert message(lambda: import_onnx(model)) == (
        "input 'many' is not a tensor; only tensor inputs can be compiled"
    )


# Operators


def test_operator_that_nothing_knows():
    model = network([node("FancyOp", ["x"], ["y"], name="layer7/fancy")], {"x": [2, 3]}, ["y"])
    assert message(lambda: import_onnx(model)) == "TVM cannot import operator FancyOp (node 'layer7/fancy')"


def test_operator_of_a_vendor():
    model = network(
        [node("Fancy", ["x"], ["y"], domain="com.vendor", name="f")],
        {"x": [2, 3]},
        ["y"],
        domains=["com.vendor"],
    )
    assert message(lambda: import_onnx(model)) == "TVM cannot import operator com.vendor.Fancy (node 'f')"


def test_operator_of_onnx_that_tvm_lacks(capfd):
    model = network(
        [node("StringNormalizer", ["x"], ["y"], name="words")],
        {"x": [3]},
        ["y"],
        dtypes={"x": TensorProto.STRING, "y": TensorProto.STRING},
    )
    text = message(lambda: import_onnx(model))
    assert "StringNormalizer" in text
    assert "'words'" in text
    assert capfd.readouterr().out == ""


def test_result_whose_shape_depends_on_the_data():
    model = network(
        [node("NonZero", ["x"], ["y"], name="where")], {"x": [2, 3]}, ["y"], dtypes={"y": TensorProto.INT64}
    )
    assert message(lambda: import_onnx(model)) == (
        "operator NonZero (node 'where') gives a result whose shape depends on the data; "
        "only fixed shapes can be compiled"
    )


def test_batch_norm_in_training_mode():
    norm = batch_norm_node("x", "y", training_mode=1)
    norm.output.extend(["new_mean", "new_var"])
    model = network([norm], {"x": [2, 4, 3, 3]}, ["y"], batch_norm(4))
    assert message(lambda: import_onnx(model)) == (
        "operator BatchNormalization (node 'bn') is in training mode: export for inference"
    )


def test_resize_by_a_factor_that_is_not_whole():
    scales = {"s": np.array([1, 1, 0.7, 0.7], np.float32)}
    model = network([node("Resize", ["x", "", "s"], ["y"], name="down")], {"x": [1, 2, 6, 8]}, ["y"], scales)
    assert message(lambda: import_onnx(model)) == (
        "operator Resize (node 'down') from [1, 2, 6, 8] to [1, 2, 4, 5] has scales that give no whole sizes: "
        "use an input shape for which they do"
    )


def test_resize_with_antialiasing():
    sizes = {"z": np.array([1, 2, 3, 4], np.int64)}
    resize = node("Resize", ["x", "", "", "z"], ["y"], name="down", mode="linear", antialias=1)
    assert message(lambda: import_onnx(network([resize], {"x": [1, 2, 6, 8]}, ["y"], sizes, 18))) == (
        "operator Resize (node 'down') from [1, 2, 6, 8] to [1, 2, 3, 4] uses antialiasing, "
        "which cannot be compiled: export it with antialias=0"
    )


# Weights


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_weights_that_are_not_finite(value, word):
    bad = weights(4, 3)
    bad[2, 1] = value
    model = network([node("MatMul", ["x", "layer.w"], ["y"])], {"x": [2, 4]}, ["y"], {"layer.w": bad})
    assert message(lambda: import_onnx(model)) == f"initializer 'layer.w' holds {word}"


def test_nan_in_half_precision_and_in_constant_nodes():
    tensor = onnx.numpy_helper.from_array(np.array([1, np.nan], np.float16))
    nodes = [
        node("Constant", [], ["k"], value=tensor),
        node("Cast", ["k"], ["f"], to=TensorProto.FLOAT),
        node("Add", ["x", "f"], ["y"]),
    ]
    assert message(lambda: import_onnx(network(nodes, {"x": [3, 2]}, ["y"]))) == "initializer 'k' holds NaN"


def test_batch_norm_of_a_negative_variance():
    constants = batch_norm(4)
    constants["bn_var"][1] = -1
    model = network([batch_norm_node("x", "y")], {"x": [2, 4, 3, 3]}, ["y"], constants)
    assert message(lambda: import_onnx(model)) == (
        "operator BatchNormalization (node 'bn') has a variance that is not positive"
    )


def test_weights_that_overflow_when_folded():
    nodes = [node("MatMul", ["x", "w"], ["a"], name="dense"), node("Mul", ["a", "k"], ["y"])]
    constants = {"w": np.full((4, 3), 1e30, np.float32), "k": np.float32(1e30)}
    assert message(lambda: import_onnx(network(nodes, {"x": [2, 4]}, ["y"], constants))) == (
        "operator 'dense' has weights that are NaN or infinite once batch norm is folded in"
    )


def test_infinity_in_a_mask_is_no_mistake():
    mask = np.array([[0, -np.inf]], np.float32)
    nodes = [node("Add", ["x", "mask"], ["a"]), node("Softmax", ["a"], ["y"])]
    import_onnx(network(nodes, {"x": [3, 2]}, ["y"], {"mask": mask}))
