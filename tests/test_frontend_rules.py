"""Each normalisation on a small network: the canonical form it must have, and the values of ONNX Runtime."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from frontend_networks import (
    assert_agrees,
    batch_norm,
    batch_norm_node,
    call_of,
    calls,
    kinds,
    network,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tvm_mpq.frontend import operators

node = helper.make_node


def conv(source="x", output="y", weight="w", bias=None, name="conv", **attributes):
    return node("Conv", [source, weight, *([bias] if bias else [])], [output], name=name, **attributes)


# Convolutions


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    group=st.integers(1, 3),
    per_group=st.integers(1, 2),
    multiplier=st.integers(1, 2),
    auto_pad=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    activation=st.sampled_from([None, "Relu", "Clip"]),
    norm=st.booleans(),
)
def test_convolution(
    data, kernel, strides, dilations, group, per_group, multiplier, auto_pad, activation, norm
):
    channels, results = group * per_group, group * multiplier
    attributes = {"strides": strides, "group": group}
    if auto_pad == "NOTSET":
        attributes |= {"dilations": dilations, "pads": data.draw(st.tuples(*[st.integers(0, 2)] * 4))}
    else:
        # ONNX Runtime refuses dilations with SAME.
        attributes["auto_pad"] = auto_pad
    constants = {"w": weights(results, per_group, *kernel), "lo": np.float32(-0.5), "hi": np.float32(0.75)}
    nodes, last = [conv(output="c", **attributes)], "c"
    if norm:
        nodes.append(batch_norm_node(last, "n"))
        constants |= batch_norm(results)
        last = "n"
    if activation is not None:
        nodes.append(node(activation, [last, *(["lo", "hi"] if activation == "Clip" else [])], ["a"]))
        last = "a"
    mod = assert_agrees(network(nodes, {"x": [2, channels, 9, 10]}, [last], constants))
    (operator,) = operators(mod)
    assert operator.name == "conv"
    assert operator.kind == ("depthwise_conv2d" if per_group == 1 and group > 1 else "conv2d")
    names = [call.op.name for call in calls(mod[operator.global_var_name])]
    expected = {None: [], "Relu": ["relax.nn.relu"], "Clip": ["relax.clip"]}[activation]
    assert names == ["relax.nn.conv2d", *(["relax.add"] if norm else []), *expected]


def test_asymmetric_padding_keeps_its_order():
    model = network([conv(pads=[1, 2, 3, 0])], {"x": [1, 3, 8, 8]}, ["y"], {"w": weights(4, 3, 3, 3)})
    mod = assert_agrees(model)
    assert [int(p) for p in call_of(mod, "conv2d").attrs.padding] == [1, 2, 3, 0]


def test_convolution_along_one_axis_is_two_dimensional_inside():
    nodes = [
        conv(output="a", pads=[1, 2], dilations=[2], name="first"),
        batch_norm_node("a", "b"),
        node("Relu", ["b"], ["c"]),
        conv("c", "y", "v", strides=[2], group=6, name="second"),
    ]
    constants = {"w": weights(6, 4, 3), "v": weights(6, 1, 3, seed=1), **batch_norm(6)}
    mod = assert_agrees(network(nodes, {"x": [2, 4, 20]}, ["y"], constants))
    # The reshape back and the reshape there again between the two cancel.
    assert kinds(mod) == ["reshape", "conv2d", "depthwise_conv2d", "reshape"]
    assert [o.name for o in operators(mod)] == ["first.to_2d", "first", "second", "second.to_1d"]


def test_convolution_along_three_axes_is_left_to_tvm():
    model = network([conv()], {"x": [1, 2, 5, 6, 7]}, ["y"], {"w": weights(3, 2, 2, 3, 2)})
    assert kinds(assert_agrees(model)) == ["conv"]


def test_convolution_with_computed_weights_is_left_to_tvm():
    model = network([conv()], {"x": [1, 2, 5, 6], "w": [3, 2, 2, 2]}, ["y"])
    assert kinds(assert_agrees(model)) == ["conv"]


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution_takes_batch_norm_in(group):
    nodes = [
        node(
            "ConvTranspose", ["x", "w", "b"], ["a"], name="up", strides=[2, 2], pads=[1, 1, 1, 1], group=group
        ),
        batch_norm_node("a", "y"),
    ]
    constants = {"w": weights(4, 6 // group, 3, 3), "b": weights(6), **batch_norm(6)}
    mod = assert_agrees(network(nodes, {"x": [1, 4, 5, 6]}, ["y"], constants))
    assert kinds(mod) == ["conv2d_transpose"]


def test_shared_weights_are_folded_for_each_user():
    nodes = [
        conv(output="a", name="first"),
        batch_norm_node("a", "n"),
        conv("n", "y", name="second"),
    ]
    mod = assert_agrees(
        network(nodes, {"x": [1, 3, 5, 5]}, ["y"], {"w": weights(3, 3, 1, 1), **batch_norm(3)})
    )
    assert kinds(mod) == ["conv2d", "conv2d"]


# Affine nodes


@pytest.mark.parametrize(
    ("op_type", "value", "left"),
    [
        ("Add", weights(1, 4, 1, 1), False),
        ("Add", weights(4, 1, 1), True),
        ("Sub", weights(4, 1, 1), False),
        ("Sub", weights(4, 1, 1), True),
        ("Mul", np.float32(0.5), False),
        ("Div", weights(4, 1, 1) + 5, False),
    ],
)
def test_constant_arithmetic_behind_a_convolution_folds(op_type, value, left):
    operands = ["k", "c"] if left else ["c", "k"]
    nodes = [conv(output="c", bias="b"), node(op_type, operands, ["y"])]
    constants = {"w": weights(4, 3, 3, 3), "b": weights(4, seed=2), "k": value}
    assert kinds(assert_agrees(network(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants))) == ["conv2d"]


@pytest.mark.parametrize(
    ("op_type", "value", "kind"),
    [
        ("Add", weights(6, 6), "broadcast_add"),
        ("Add", weights(6), "broadcast_add"),
        ("Mul", weights(1, 1, 6, 1), "mul"),
        ("Add", weights(3, 4, 1, 1), "broadcast_add"),
    ],
    ids=["image", "column", "row", "grows"],
)
def test_constants_along_other_axes_do_not_fold(op_type, value, kind):
    nodes = [conv(output="c"), node(op_type, ["c", "k"], ["y"])]
    constants = {"w": weights(4, 3, 1, 1), "k": value}
    mod = assert_agrees(network(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants))
    assert kinds(mod) == ["conv2d", kind]


def test_a_convolution_with_two_readers_keeps_its_batch_norm_apart():
    nodes = [conv(output="c"), batch_norm_node("c", "n"), node("Add", ["c", "n"], ["y"])]
    mod = assert_agrees(
        network(nodes, {"x": [1, 3, 6, 6]}, ["y"], {"w": weights(4, 3, 1, 1), **batch_norm(4)})
    )
    assert kinds(mod) == ["conv2d", "depthwise_conv2d", "add"]


def test_a_convolution_that_is_an_output_keeps_its_activation_apart():
    nodes = [conv(output="c"), node("Relu", ["c"], ["y"])]
    mod = assert_agrees(network(nodes, {"x": [1, 3, 6, 6]}, ["c", "y"], {"w": weights(4, 3, 1, 1)}))
    assert kinds(mod) == ["conv2d", "activation"]


@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_in_front_of_an_unpadded_convolution_folds(group):
    nodes = [batch_norm_node("x", "n"), conv("n", "y", group=group)]
    constants = {"w": weights(6, 4 // group, 3, 3), **batch_norm(4)}
    assert kinds(assert_agrees(network(nodes, {"x": [1, 4, 6, 6]}, ["y"], constants))) == ["conv2d"]


def test_batch_norm_in_front_of_a_padded_convolution_is_depthwise():
    nodes = [batch_norm_node("x", "n", prefix="bn"), conv("n", "y", pads=[1, 1, 1, 1])]
    mod = assert_agrees(
        network(nodes, {"x": [1, 4, 6, 6]}, ["y"], {"w": weights(6, 4, 3, 3), **batch_norm(4)})
    )
    assert [(o.name, o.kind) for o in operators(mod)] == [("bn", "depthwise_conv2d"), ("conv", "conv2d")]


def test_a_factor_in_front_of_a_padded_convolution_folds():
    nodes = [node("Div", ["x", "k"], ["n"]), conv("n", "y", pads=[1, 1, 1, 1])]
    constants = {"w": weights(6, 4, 3, 3), "k": np.float32(255)}
    assert kinds(assert_agrees(network(nodes, {"x": [1, 4, 6, 6]}, ["y"], constants))) == ["conv2d"]


def test_batch_norm_before_an_activation_is_depthwise_with_it():
    nodes = [batch_norm_node("x", "n"), node("Relu", ["n"], ["a"]), conv("a", "y")]
    mod = assert_agrees(
        network(nodes, {"x": [1, 4, 6, 6]}, ["y"], {"w": weights(6, 4, 3, 3), **batch_norm(4)})
    )
    assert kinds(mod) == ["depthwise_conv2d", "conv2d"]


@pytest.mark.parametrize("shape", [[2, 4, 7], [2, 4]])
def test_batch_norm_alone_over_other_ranks(shape):
    mod = assert_agrees(network([batch_norm_node("x", "y")], {"x": shape}, ["y"], batch_norm(4)))
    assert kinds(mod) == (
        ["reshape", "depthwise_conv2d", "reshape"] if len(shape) == 3 else ["batchnormalization"]
    )


# Padding


def pad_node(opset, amounts, value=None, output="p"):
    if opset < 11:
        return node("Pad", ["x"], [output], pads=amounts, **({} if value is None else {"value": value})), {}
    constants = {"amounts": np.array(amounts, np.int64)}
    if value is not None:
        constants["value"] = np.float32(value)
    return node("Pad", ["x", *constants], [output]), constants


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_zero_padding_moves_into_the_convolution(opset):
    pad, constants = pad_node(opset, [0, 0, 1, 2, 0, 0, 3, 0])
    nodes = [pad, conv("p", "y", pads=[1, 0, 0, 1])]
    mod = assert_agrees(
        network(nodes, {"x": [1, 3, 6, 6]}, ["y"], {"w": weights(4, 3, 3, 3), **constants}, opset)
    )
    assert kinds(mod) == ["conv2d"]
    assert [int(p) for p in call_of(mod, "conv2d").attrs.padding] == [2, 2, 3, 1]


def test_padding_of_named_axes_moves_into_the_convolution():
    nodes = [node("Pad", ["x", "amounts", "", "axes"], ["p"]), conv("p", "y")]
    constants = {
        "w": weights(4, 3, 3, 3),
        "amounts": np.array([2, 1], np.int64),
        "axes": np.array([-1], np.int64),
    }
    mod = assert_agrees(network(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants, 18))
    assert kinds(mod) == ["conv2d"]
    assert [int(p) for p in call_of(mod, "conv2d").attrs.padding] == [0, 2, 0, 1]


@pytest.mark.parametrize(
    ("amounts", "value"), [([0, 0, 1, 1, 0, 0, 1, 1], 1.0), ([0, 1, 0, 0, 0, 1, 0, 0], 0.0)]
)
def test_other_padding_stays(amounts, value):
    pad, constants = pad_node(17, amounts, value)
    channels = 3 + amounts[1] + amounts[5]
    nodes = [pad, conv("p", "y")]
    constants["w"] = weights(4, channels, 3, 3)
    assert kinds(assert_agrees(network(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants))) == ["pad", "conv2d"]


@pytest.mark.parametrize("include", [0, 1])
def test_zero_padding_before_an_average_pool_counts(include):
    pad, constants = pad_node(17, [0, 0, 1, 0, 0, 0, 1, 1])
    pool = node("AveragePool", ["p"], ["y"], kernel_shape=[3, 3], count_include_pad=include)
    mod = assert_agrees(network([pad, pool], {"x": [1, 3, 6, 6]}, ["y"], constants))
    assert kinds(mod) == ["avg_pool2d"]
    assert bool(call_of(mod, "avg_pool2d").attrs.count_include_pad)


@pytest.mark.parametrize(("value", "expected"), [(-math.inf, ["max_pool2d"]), (0.0, ["pad", "max_pool2d"])])
def test_padding_before_a_max_pool(value, expected):
    pad, constants = pad_node(17, [0, 0, 1, 0, 0, 0, 1, 1], value)
    pool = node("MaxPool", ["p"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    assert kinds(assert_agrees(network([pad, pool], {"x": [1, 3, 6, 6]}, ["y"], constants))) == expected


# Pools


@settings(max_examples=10, deadline=None)
@given(
    op_type=st.sampled_from(["MaxPool", "AveragePool"]),
    kernel=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    ceil_mode=st.booleans(),
    include=st.booleans(),
    dilation=st.integers(1, 2),
)
def test_pool(op_type, kernel, strides, pads, ceil_mode, include, dilation):
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": int(ceil_mode)}
    if op_type == "MaxPool":
        attributes["dilations"] = [dilation, dilation]
    else:
        attributes["count_include_pad"] = int(include)
    model = network([node(op_type, ["x"], ["y"], **attributes)], {"x": [2, 3, 10, 11]}, ["y"])
    (kind,) = kinds(assert_agrees(model))
    if op_type == "MaxPool":
        assert kind == "max_pool2d"
    elif not (include and ceil_mode):
        assert kind == "avg_pool2d"


@pytest.mark.parametrize(
    ("model_node", "shape", "expected"),
    [
        (node("GlobalAveragePool", ["x"], ["y"]), [2, 3, 4, 5], ["global_avg_pool"]),
        (node("GlobalAveragePool", ["x"], ["y"]), [2, 3, 7], ["reshape", "global_avg_pool", "reshape"]),
        (node("GlobalMaxPool", ["x"], ["y"]), [2, 3, 4, 5], ["max_pool2d"]),
        (node("AveragePool", ["x"], ["y"], kernel_shape=[4, 5]), [2, 3, 4, 5], ["global_avg_pool"]),
        (node("ReduceMean", ["x"], ["y"], axes=[2, 3]), [2, 3, 4, 5], ["global_avg_pool"]),
        (
            node("ReduceMean", ["x"], ["y"], axes=[-1, -2], keepdims=0),
            [2, 3, 4, 5],
            ["global_avg_pool", "reshape"],
        ),
        (node("ReduceMean", ["x"], ["y"], axes=[1]), [2, 3, 4, 5], ["reducemean"]),
    ],
)
def test_whole_image_pools(model_node, shape, expected):
    assert kinds(assert_agrees(network([model_node], {"x": shape}, ["y"]))) == expected


def test_mean_with_axes_as_an_input():
    constants = {"axes": np.array([2, 3], np.int64)}
    model = network([node("ReduceMean", ["x", "axes"], ["y"])], {"x": [2, 3, 4, 5]}, ["y"], constants, 18)
    assert kinds(assert_agrees(model)) == ["global_avg_pool"]


# Matrix multiplication


@settings(max_examples=12, deadline=None)
@given(
    trans_a=st.booleans(),
    trans_b=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([1.0, -2.0]),
    bias=st.sampled_from([None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)]),
)
def test_gemm(trans_a, trans_b, alpha, beta, bias):
    constants = {"w": weights(5, 4) if trans_b else weights(4, 5)}
    if bias is not None:
        constants["b"] = np.asarray(weights(*bias, seed=3) if bias else 0.7, np.float32)
    gemm = node(
        "Gemm",
        ["x", *constants],
        ["y"],
        transA=int(trans_a),
        transB=int(trans_b),
        alpha=alpha,
        beta=beta,
    )
    model = network([gemm], {"x": [4, 3] if trans_a else [3, 4]}, ["y"], constants)
    found = kinds(assert_agrees(model))
    varies = bias in ((3, 1), (3, 5))
    assert found == [*(["permute_dims"] if trans_a else []), "matmul", *(["broadcast_add"] if varies else [])]


def test_gemm_with_a_computed_addend():
    model = network(
        [node("Gemm", ["x", "w", "c"], ["y"])], {"x": [3, 4], "c": [3, 5]}, ["y"], {"w": weights(4, 5)}
    )
    assert kinds(assert_agrees(model)) == ["matmul", "add"]


def test_gemm_of_two_activations():
    model = network([node("Gemm", ["x", "w"], ["y"])], {"x": [3, 4], "w": [4, 5]}, ["y"])
    assert kinds(assert_agrees(model)) == ["gemm"]


def test_matmul_takes_bias_factor_and_activation_in():
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="dense"),
        node("Add", ["b", "a"], ["c"]),
        node("Mul", ["c", "k"], ["d"]),
        node("Clip", ["d", "lo", ""], ["y"]),
    ]
    constants = {"w": weights(4, 5), "b": weights(5), "k": np.float32(0.25), "lo": np.float32(-0.1)}
    mod = assert_agrees(network(nodes, {"x": [2, 3, 4]}, ["y"], constants))
    assert [(o.name, o.kind) for o in operators(mod)] == [("dense", "matmul")]
    assert [call.op.name for call in calls(mod[operators(mod)[0].global_var_name])] == [
        "relax.matmul",
        "relax.add",
        "relax.clip",
    ]


def test_batch_norm_behind_gemm_folds():
    nodes = [node("Gemm", ["x", "w"], ["a"]), batch_norm_node("a", "y")]
    model = network(nodes, {"x": [3, 4]}, ["y"], {"w": weights(4, 5), **batch_norm(5)})
    assert kinds(assert_agrees(model)) == ["matmul"]


def test_batch_norm_in_front_of_matmul_folds():
    nodes = [batch_norm_node("x", "n"), node("Gemm", ["n", "w", "b"], ["y"])]
    model = network(nodes, {"x": [3, 4]}, ["y"], {"w": weights(4, 5), "b": weights(5), **batch_norm(4)})
    assert kinds(assert_agrees(model)) == ["matmul"]


@pytest.mark.parametrize(
    ("shapes", "constants"),
    [
        ({"x": [2, 3, 4], "z": [4, 5]}, {}),
        ({"z": [4, 5]}, {"x": weights(3, 4)}),
        ({"x": [2, 3, 4]}, {"z": weights(2, 4, 5)}),
        ({"x": [4]}, {"z": weights(4, 5)}),
    ],
)
def test_other_matrix_products_are_left_to_tvm(shapes, constants):
    model = network([node("MatMul", ["x", "z"], ["y"])], shapes, ["y"], constants)
    assert kinds(assert_agrees(model)) == ["onnx_matmul"]


# Activations


@pytest.mark.parametrize(
    ("clip", "constants", "opset", "expected"),
    [
        (node("Clip", ["x"], ["y"], min=0.0, max=6.0), {}, 7, ("relax.clip", 0.0, 6.0)),
        (node("Clip", ["x"], ["y"], min=0.0), {}, 7, ("relax.clip", 0.0, 3.4028234663852886e38)),
        (node("Clip", ["x", "lo"], ["y"]), {"lo": np.float32(0)}, 13, ("relax.nn.relu",)),
        (node("Clip", ["x", "", "hi"], ["y"]), {"hi": np.float32(0.5)}, 13, ("relax.clip", -math.inf, 0.5)),
        (node("Relu", ["x"], ["y"]), {}, 13, ("relax.nn.relu",)),
        (node("Max", ["x", "lo"], ["y"]), {"lo": np.float32(0)}, 13, ("relax.nn.relu",)),
        (
            node("Min", ["hi", "x"], ["y"]),
            {"hi": weights(1)},
            13,
            ("relax.clip", -math.inf, float(weights(1)[0])),
        ),
    ],
)
def test_activation_alone(clip, constants, opset, expected):
    if opset == 7 and len(clip.attribute) == 1:
        # The default upper bound of old versions is the largest float: as good as none.
        expected = ("relax.nn.relu",)
    mod = assert_agrees(network([clip], {"x": [2, 30]}, ["y"], constants, opset))
    assert kinds(mod) == ["activation"]
    call = call_of(mod, "activation")
    assert (call.op.name, *(pytest.approx(float(bound.value)) for bound in call.args[1:])) == expected


def test_activations_in_a_row_are_one():
    nodes = [
        conv(output="a"),
        node("Relu", ["a"], ["b"]),
        node("Min", ["b", "six"], ["c"]),
        node("Clip", ["c", "lo", "hi"], ["y"]),
    ]
    constants = {
        "w": weights(4, 3, 3, 3),
        "six": np.float32(6),
        "lo": np.float32(-1),
        "hi": np.float32(0.5),
    }
    mod = assert_agrees(network(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants))
    (operator,) = operators(mod)
    last = calls(mod[operator.global_var_name])[-1]
    assert (last.op.name, [float(bound.value) for bound in last.args[1:]]) == ("relax.clip", [0.0, 0.5])


def test_crossed_bounds_give_the_upper_one():
    constants = {"lo": np.float32(1), "hi": np.float32(-1)}
    model = network([node("Clip", ["x", "lo", "hi"], ["y"])], {"x": [2, 30]}, ["y"], constants)
    assert kinds(assert_agrees(model)) == ["activation"]


def test_clip_of_integers_is_left_to_tvm():
    dtypes = {"x": onnx.TensorProto.INT64, "y": onnx.TensorProto.INT64}
    constants = {"lo": np.int64(0), "hi": np.int64(1)}
    model = network([node("Clip", ["x", "lo", "hi"], ["y"])], {"x": [2, 3]}, ["y"], constants, dtypes=dtypes)
    assert kinds(assert_agrees(model)) == ["clip"]


# Layout and elementwise


def test_residual_addition_takes_the_activation_in():
    nodes = [
        conv(output="a", pads=[1, 1, 1, 1]),
        node("Add", ["a", "x"], ["b"], name="residual"),
        node("Relu", ["b"], ["y"]),
    ]
    mod = assert_agrees(network(nodes, {"x": [1, 3, 6, 6]}, ["y"], {"w": weights(3, 3, 3, 3)}))
    assert [(o.name, o.kind) for o in operators(mod)] == [("conv", "conv2d"), ("residual", "add")]


def test_an_activation_added_to_itself():
    model = network([node("Add", ["x", "x"], ["y"])], {"x": [2, 3]}, ["y"])
    assert kinds(assert_agrees(model)) == ["pointwise"]


def test_sum_of_three_is_two_additions():
    shapes = {"x": [2, 3], "z": [2, 3], "u": [2, 3]}
    mod = assert_agrees(network([node("Sum", ["x", "z", "u"], ["y"], name="sum")], shapes, ["y"]))
    assert [(o.name, o.kind) for o in operators(mod)] == [("sum.1", "add"), ("sum", "add")]


@pytest.mark.parametrize(("op_type", "kind"), [("Add", "broadcast_add"), ("Sub", "sub"), ("Mul", "mul")])
@pytest.mark.parametrize("other", [[2, 3, 1, 1], [3, 1, 1], [4]])
def test_arithmetic_that_broadcasts(op_type, kind, other):
    """Both operands get the result's rank; a clip behind becomes part of the operator."""
    nodes = [node(op_type, ["z", "x"], ["a"]), node("Relu", ["a"], ["y"])]
    mod = assert_agrees(network(nodes, {"x": [2, 3, 4, 4], "z": other}, ["y"]))
    assert kinds(mod) == [*(["reshape"] if len(other) < 4 else []), kind]


def test_concat():
    shapes = {"x": [2, 3, 4], "z": [2, 5, 4]}
    mod = assert_agrees(network([node("Concat", ["x", "z"], ["y"], axis=-2)], shapes, ["y"]))
    assert kinds(mod) == ["concat"]
    assert int(call_of(mod, "concat").attrs.axis) == 1


def test_concat_with_a_constant_is_left_to_tvm():
    model = network([node("Concat", ["x", "k"], ["y"], axis=1)], {"x": [2, 3]}, ["y"], {"k": weights(2, 4)})
    assert kinds(assert_agrees(model)) == ["onnx_concat"]


@pytest.mark.parametrize(
    ("model_node", "constants", "opset"),
    [
        (node("Flatten", ["x"], ["y"], axis=2), {}, 13),
        (node("Reshape", ["x", "s"], ["y"]), {"s": np.array([0, -1], np.int64)}, 13),
        (node("Squeeze", ["x"], ["y"], axes=[1]), {}, 11),
        (node("Squeeze", ["x", "s"], ["y"]), {"s": np.array([1], np.int64)}, 13),
        (node("Unsqueeze", ["x", "s"], ["y"]), {"s": np.array([0, -1], np.int64)}, 13),
        # Only an axis of size 1 moves.
        (node("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3]), {}, 13),
    ],
)
def test_what_ends_as_reshape(model_node, constants, opset):
    assert kinds(assert_agrees(network([model_node], {"x": [2, 1, 3, 4]}, ["y"], constants, opset))) == [
        "reshape"
    ]


def test_reshapes_in_a_row_are_one_and_none_if_the_shape_returns():
    constants = {"s": np.array([6, 4], np.int64), "t": np.array([2, 3, 4], np.int64)}
    nodes = [
        node("Reshape", ["x", "s"], ["a"]),
        node("Reshape", ["a", "t"], ["b"]),
        node("Sigmoid", ["b"], ["y"]),
    ]
    assert kinds(assert_agrees(network(nodes, {"x": [2, 3, 4]}, ["y"], constants))) == ["sigmoid"]


def test_transpose():
    mod = assert_agrees(
        network([node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], {"x": [2, 3, 4, 5]}, ["y"])
    )
    assert kinds(mod) == ["permute_dims"]


@pytest.mark.parametrize(
    ("attributes", "opset", "expected"),
    [
        ({"axis": 1}, 13, ["softmax"]),
        ({}, 13, ["softmax"]),
        ({"axis": -1}, 11, ["softmax"]),
        ({}, 11, ["reshape", "softmax", "reshape"]),
    ],
)
def test_softmax(attributes, opset, expected):
    model = network([node("Softmax", ["x"], ["y"], **attributes)], {"x": [2, 3, 4]}, ["y"], opset=opset)
    assert kinds(assert_agrees(model)) == expected


@pytest.mark.parametrize(
    ("kept", "axis", "matched"), [(1, 1, True), (0, 1, True), (0, 2, True), (1, 0, False)]
)
def test_softmax_spelled_out(kept, axis, matched):
    """Along ``axis`` of [2, 3, 4], as JAX writes it where the axis is not kept; over two axes it is none."""
    axes = [axis] if matched else [1, 2]
    narrow = [1 if place in axes else size for place, size in enumerate((2, 3, 4))]
    nodes = [
        node("ReduceMax", ["x"], ["max"], axes=[axis], keepdims=kept),
        node("Reshape", ["max", "max_narrow"], ["max_kept"]),
        node("Expand", ["max_kept", "wide"], ["most"]),
        node("Sub", ["x", "most"], ["shifted"]),
        node("Exp", ["shifted"], ["power"]),
        node("ReduceSum", ["power", "axes"], ["total"], keepdims=kept),
        node("Reshape", ["total", "narrow"], ["total_kept"]),
        node("Expand", ["total_kept", "wide"], ["all"]),
        node("Div", ["power", "all"], ["y"]),
    ]
    constants = {
        "axes": np.array(axes, np.int64),
        "narrow": np.array(narrow, np.int64),
        "max_narrow": np.array([1 if place == axis else n for place, n in enumerate((2, 3, 4))], np.int64),
        "wide": np.array([2, 3, 4], np.int64),
    }
    found = kinds(assert_agrees(network(nodes, {"x": [2, 3, 4]}, ["y"], constants, opset=13)))
    assert (found == ["softmax"]) == matched


def test_identities_are_gone():
    nodes = [
        node("Identity", ["x"], ["a"]),
        node("Dropout", ["a"], ["b", "mask"]),
        node("Cast", ["b"], ["c"], to=onnx.TensorProto.FLOAT),
        node("Concat", ["c"], ["d"], axis=0),
        node("Pad", ["d", "none"], ["e"]),
        node("Transpose", ["e"], ["f"], perm=[0, 1]),
        node("Slice", ["f", "zero", "end"], ["g"]),
        node("Sigmoid", ["g"], ["h"], name="only"),
        node("Identity", ["h"], ["y"]),
    ]
    constants = {
        "none": np.zeros(4, np.int64),
        "zero": np.array([0], np.int64),
        "end": np.array([1000], np.int64),
    }
    mod = assert_agrees(network(nodes, {"x": [2, 3]}, ["y"], constants))
    assert [o.name for o in operators(mod)] == ["only"]


def test_a_slice_backwards_is_no_identity():
    constants = {"b": [-1], "e": [-1000], "a": [1], "s": [-1]}
    model = network(
        [node("Slice", ["x", "b", "e", "a", "s"], ["y"])],
        {"x": [2, 3]},
        ["y"],
        {name: np.array(value, np.int64) for name, value in constants.items()},
    )
    assert kinds(assert_agrees(model)) == ["onnx_slice"]
