"""Functions of each element: every ONNX spelling, the table of 256 codes, and the float kernel."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from frontend_networks import assert_agrees, kinds, network, run_reference, weights
from kernel_runner import TARGETS, require, run
from onnx import helper
from reference import tabulated
from small_networks import node

from tvm_mpq.frontend import import_onnx, operators
from tvm_mpq.kernels.pointwise import pointwise, table_lookup
from tvm_mpq.kernels.schedule_default import schedule_default
from tvm_mpq.pointwise import Pointwise, X
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.table import code_table
from tvm_mpq.transform.operator_body import read_pointwise

INSTRUCTIONS = pytest.mark.parametrize("instruction", list(TARGETS))
NUMBERS = {
    "third": np.float32(1 / 3),
    "half": np.float32(0.5),
    "one": np.float32([1.0]),
    "two": np.float32(2.0),
    "three": np.float32([[3.0]]),
    "cube": np.int64(3),
    "six": np.float32(6.0),
    "root": np.float32(np.sqrt(2.0)),
    "minus": np.float32(-1.5),
    "zero": np.float32(0.0),
}
LONE = [
    ("Sigmoid", {}, 17),
    ("Tanh", {}, 17),
    ("Erf", {}, 17),
    ("Exp", {}, 17),
    ("Abs", {}, 17),
    ("Neg", {}, 17),
    ("Sin", {}, 17),
    ("Cos", {}, 17),
    ("Floor", {}, 17),
    ("Ceil", {}, 17),
    ("Round", {}, 17),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, 17),
    ("HardSwish", {}, 17),
    ("LeakyRelu", {"alpha": 0.2}, 17),
    ("Elu", {"alpha": 0.7}, 17),
    ("Celu", {"alpha": 1.7}, 17),
    ("Selu", {}, 17),
    ("Softplus", {}, 17),
    ("Softsign", {}, 17),
    ("Mish", {}, 18),
    ("Gelu", {}, 20),
    ("Gelu", {"approximate": "tanh"}, 20),
]


def numbers(nodes: list[onnx.NodeProto]) -> dict[str, np.ndarray]:
    used = {name for each in nodes for name in each.input}
    return {name: value for name, value in NUMBERS.items() if name in used}


def curve(nodes: list[onnx.NodeProto], output: str = "y", opset: int = 17) -> onnx.ModelProto:
    return network(nodes, {"x": [2, 5, 3, 7]}, [output], numbers(nodes), opset=opset)


@pytest.mark.parametrize(("op_type", "attributes", "opset"), LONE)
def test_every_operator_of_one_tensor(op_type: str, attributes: dict, opset: int) -> None:
    model = curve([helper.make_node(op_type, ["x"], ["y"], name="f", **attributes)], opset=opset)
    x = np.linspace(-9, 9, 210, dtype=np.float32).reshape(2, 5, 3, 7)
    mod = assert_agrees(model, feeds={"x": x}, tolerance=1e-5)
    assert kinds(mod) == ["sigmoid" if op_type == "Sigmoid" else "pointwise"]


@pytest.mark.parametrize(
    ("op_type", "inputs"),
    [
        ("Add", "x third"),
        ("Sub", "one x"),
        ("Mul", "x minus"),
        ("Div", "six x"),
        ("Pow", "x two"),
        ("Pow", "x cube"),
        ("PRelu", "x half"),
    ],
)
def test_a_tensor_and_a_number(op_type: str, inputs: str) -> None:
    mod = assert_agrees(curve([node(op_type, inputs, "y")]), tolerance=1e-5)
    assert kinds(mod) == ["pointwise"]


@pytest.mark.parametrize("op_type", ["Log", "Sqrt", "Reciprocal"])
def test_operators_of_positive_numbers(op_type: str) -> None:
    x = np.linspace(0.01, 9, 210, dtype=np.float32).reshape(2, 5, 3, 7)
    mod = assert_agrees(curve([node(op_type, "x", "y")]), feeds={"x": x}, tolerance=1e-5)
    assert kinds(mod) == ["pointwise"]


GELU = [
    node("Div", "x root", "d"),
    node("Erf", "d", "e"),
    node("Add", "e one", "a"),
    node("Mul", "x a", "m"),
    node("Mul", "m half", "y"),
]
GELU_HALVED_FIRST = [
    node("Mul", "x half", "h"),
    node("Div", "x root", "d"),
    node("Erf", "d", "e"),
    node("Add", "one e", "a"),
    node("Mul", "h a", "y"),
]
HARD_SWISH = [
    node("Add", "x three", "a"),
    node("Clip", "a zero six", "c"),
    node("Mul", "x c", "m"),
    node("Div", "m six", "y"),
]
SILU = [node("Sigmoid", "x", "s"), node("Mul", "s x", "y")]
SQUARED = [node("Relu", "x", "r"), node("Mul", "r r", "y")]
CHAIN = [node("Tanh", "x", "t"), node("Relu", "t", "r"), node("Sub", "one r", "u"), node("Sub", "x u", "y")]


@pytest.mark.parametrize("nodes", [GELU, GELU_HALVED_FIRST, HARD_SWISH, SILU, SQUARED, CHAIN])
def test_expressions_of_one_tensor_are_one_operator(nodes: list[onnx.NodeProto]) -> None:
    (operator,) = operators(assert_agrees(curve(nodes), tolerance=1e-5))
    assert (operator.kind, operator.name) == ("pointwise", "y")


def test_what_others_read_stays_a_tensor() -> None:
    nodes = [*SILU, node("Mul", "s y", "z")]
    constants = numbers(nodes)
    mod = assert_agrees(network(nodes, {"x": [2, 5]}, ["z", "y"], constants))
    assert [(each.name, each.kind) for each in operators(mod)] == [
        ("s", "sigmoid"),
        ("y", "mul"),
        ("z", "mul"),
    ]
    # Broadcasting is no function of each element of one tensor.
    nodes = [node("Sigmoid", "x", "s"), node("Mul", "s x", "y")]
    assert kinds(assert_agrees(network(nodes, {"x": [5, 1]}, ["y"]))) == ["pointwise"]


def test_a_relu_behind_a_convolution_stays_there() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Sigmoid", "r", "y")]
    mod = assert_agrees(network(nodes, {"x": [1, 3, 4, 4]}, ["y"], {"w": weights(2, 3, 1, 1)}))
    assert kinds(mod) == ["conv2d", "sigmoid"]


@pytest.mark.parametrize("nodes", [GELU, HARD_SWISH, SILU, CHAIN])
def test_the_body_is_read_back_as_it_was(nodes: list[onnx.NodeProto]) -> None:
    mod = import_onnx(curve(nodes))
    function = read_pointwise(mod[operators(mod)[0].global_var_name])
    x = np.linspace(-9, 9, 210).reshape(2, 5, 3, 7)
    feeds = {"x": x.astype(np.float32)}
    (expected,) = run_reference(curve(nodes), feeds)
    np.testing.assert_allclose(function.evaluate(x), expected, rtol=1e-5, atol=1e-5)
    assert Pointwise.from_json(function.to_json()) == function


@INSTRUCTIONS
@pytest.mark.parametrize("shape", [(1,), (37,), (64, 300), (3, 5, 7)])
def test_table_lookup(instruction: str, shape: tuple[int, ...]) -> None:
    require(instruction)
    rng = np.random.default_rng(1)
    x, table = (rng.integers(0, 256, dims).astype(np.uint8) for dims in (shape, (256,)))
    result = run(schedule_default(table_lookup(shape)), instruction, x, table)
    np.testing.assert_array_equal(result, table[x], strict=True)


FUNCTIONS = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
}


@INSTRUCTIONS
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_float_functions_are_accurate(instruction: str, name: str) -> None:
    require(instruction)
    x = np.concatenate(
        [np.linspace(-12, 12, 4000), np.geomspace(1e-6, 80, 500), -np.geomspace(1e-6, 80, 500)]
    )
    x = x.astype(np.float32)
    result = run(schedule_default(pointwise(x.shape, X.then(name))), instruction, x)
    exact = FUNCTIONS[name](x.astype(np.float64))
    tolerance = {"rtol": 5e-7, "atol": 0} if name == "exp" else {"rtol": 0, "atol": 6e-7}
    np.testing.assert_allclose(result, exact, **tolerance)


def test_tables_hold_the_nearest_codes() -> None:
    source, out = Grid.from_range(-6.0, 8.0), Grid.from_range(-0.4, 8.0)
    silu = X.join("multiply", X.then("sigmoid"))
    table = code_table(silu.evaluate, source, out)
    x = source.dequantize(np.arange(256, dtype=np.uint8)).astype(np.float64)
    exact = x / (1 + np.exp(-x))
    assert np.abs(out.dequantize(table) - np.clip(exact, *out.dequantize(np.uint8([0, 255])))).max() <= (
        0.5001 * out.scale
    )
    np.testing.assert_array_equal(
        table, tabulated(np.arange(256, dtype=np.uint8), silu.evaluate, source, out)
    )


def test_values_without_a_code() -> None:
    """Infinities saturate; where the function is not defined the entry is zero's code."""
    source, out = Grid(0.5, 10), Grid(0.5, 100)
    table = code_table(X.then("log").evaluate, source, out)
    assert table[10] == 0
    assert (table[:10] == 100).all()
    assert code_table(X.then("divide", 1.0, swapped=True).evaluate, source, out)[10] == 255
