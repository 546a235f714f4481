"""Gradients of single operators against central differences of ONNX Runtime, in float64 where it has that."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnxruntime
import pytest
import tvm
from frontend_networks import network, weights
from onnx import helper
from small_networks import node
from tvm import relax

from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.sensitivity.backward import Differentiated, add_gradients
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder
from tvm_mpq.sensitivity.losses import RelaxLoss
from tvm_mpq.transform.operator_body import shape_of

PLAIN = tvm.target.Target({"kind": "llvm", "opt-level": 0})


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in float64, where ONNX Runtime has its operators for that; else in float32."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for value in [*changed.graph.input, *changed.graph.output]:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for tensor in changed.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(
                    onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name
                )
            )
    return changed


# ONNX's shape inference and ONNX Runtime disagree about a last window that lies in the padding: it warns at every run.
onnxruntime.set_default_logger_severity(3)


def session(model: onnx.ModelProto) -> tuple[onnxruntime.InferenceSession, Any]:
    try:
        return onnxruntime.InferenceSession(doubled(model).SerializeToString()), np.float64
    except Exception:
        return onnxruntime.InferenceSession(model.SerializeToString()), np.float32


def projection(builder, outputs, labels, reference) -> relax.Expr:
    """Σ over all outputs of ⟨output, reference⟩ for each sample: its gradient by an output is the reference."""
    total = None
    for y, r in zip(outputs, reference, strict=True):
        shape = shape_of(y)
        flat = builder.emit(relax.op.reshape(builder.emit(y * r), (shape[0], int(np.prod(shape[1:])))))
        term = builder.emit(relax.op.sum(flat, [1]))
        total = term if total is None else builder.emit(total + term)
    return total


def side_by_side(cases: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    """One network of all ``cases``, every name behind its case's name: one build for all of them."""
    graphs = [onnx.compose.add_prefix(model, f"{name}:").graph for name, model in cases.items()]
    parts = {
        part: [each for graph in graphs for each in getattr(graph, part)]
        for part in ("node", "input", "output", "initializer")
    }
    graph = helper.make_graph(parts["node"], "all", parts["input"], parts["output"], parts["initializer"])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers that depend on ``name`` only, away from zero, where many functions have a kink."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return (x + np.copysign(0.02, x)).astype(np.float32)


@functools.cache
def gradients() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """For each case x, the direction of its output that is differentiated, and the gradient by x."""
    mod = import_onnx(side_by_side(CASES))
    inputs, outputs = io_specs(mod)
    x = {spec.name: drawn(spec.name, spec.shape) for spec in inputs}
    along = {spec.name: drawn(spec.name, spec.shape) for spec in outputs}
    results: dict[str, relax.Var] = {}

    def collect(_: CanonicalBuilder, operator: Differentiated) -> None:
        parts = zip(operator.inputs, operator.input_gradients, strict=True)
        for place, (source, gradient) in enumerate(parts):
            if source in names and gradient is not None:
                results[f"{names[source]} {operator.name} {place}"] = gradient

    names = dict(zip(mod["main"].params, x, strict=True))
    loss = RelaxLoss("projection", projection, None, True)
    everything = [operator.name for operator in operators(mod)]
    builder, _ = add_gradients(mod, loss, everything, collect, every_input=True)
    # Without the project's schedules: what is asked here is what is computed, and plain loops compile sooner.
    module = builder.build(results)
    machine = relax.VirtualMachine(relax.build(module, PLAIN), tvm.cpu())
    found = machine["main"](*(tvm.runtime.tensor(value) for value in (*x.values(), *along.values())))
    totals: dict[str, np.ndarray] = {}
    for name, part in zip(results, found, strict=True):
        source = name.split()[0]
        totals[source] = totals.get(source, 0) + part.numpy()
    return x, along, totals


def one(op_type: str, shape: list[int], constants: dict[str, np.ndarray] | None = None, **attributes: Any):
    """A network of one node on x of ``shape`` and of constants, in their order."""
    names = " ".join(["x", *(constants or {})])
    return network([node(op_type, names, "y", **attributes)], {"x": shape}, ["y"], constants)


def ranges(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> dict[str, np.ndarray]:
    return {"s": np.array(starts), "e": np.array(ends), "a": np.array(axes), "t": np.array(steps)}


IMAGE = [2, 6, 9, 7]
CASES = {
    "conv": one("Conv", IMAGE, {"w": weights(4, 6, 3, 3)}, pads=[1, 1, 1, 1]),
    "conv_asymmetric": one("Conv", IMAGE, {"w": weights(4, 6, 3, 2), "b": weights(4)}, pads=[0, 1, 2, 0]),
    "conv_strided": one("Conv", IMAGE, {"w": weights(4, 6, 3, 3)}, pads=[1, 1, 1, 1], strides=[2, 2]),
    "conv_strided_rest": one("Conv", IMAGE, {"w": weights(4, 6, 2, 2)}, strides=[3, 2]),
    "conv_1x1_strided": one("Conv", IMAGE, {"w": weights(4, 6, 1, 1)}, strides=[2, 2]),
    "conv_dilated": one("Conv", IMAGE, {"w": weights(4, 6, 3, 3)}, dilations=[2, 2], pads=[2, 2, 2, 2]),
    "conv_dilated_strided": one("Conv", IMAGE, {"w": weights(4, 6, 3, 2)}, dilations=[2, 3], strides=[2, 1]),
    "conv_grouped": one("Conv", IMAGE, {"w": weights(4, 3, 3, 3)}, group=2, pads=[1, 1, 1, 1]),
    "conv_depthwise": one("Conv", IMAGE, {"w": weights(6, 1, 3, 3)}, group=6, strides=[2, 2]),
    "conv_multiplier": one("Conv", IMAGE, {"w": weights(12, 1, 3, 3)}, group=6, pads=[1, 1, 1, 1]),
    "conv_overpadded": one("Conv", IMAGE, {"w": weights(4, 6, 2, 2)}, pads=[3, 2, 2, 3]),
    "conv_1d": one("Conv", [2, 6, 11], {"w": weights(4, 6, 3)}, pads=[1, 1], strides=[2]),
    "transposed": one(
        "ConvTranspose", IMAGE, {"w": weights(6, 4, 3, 3)}, strides=[2, 2], output_padding=[1, 1]
    ),
    "transposed_grouped": one("ConvTranspose", IMAGE, {"w": weights(6, 2, 3, 3)}, group=2, pads=[1, 1, 1, 1]),
    "transposed_1d": one("ConvTranspose", [2, 6, 11], {"w": weights(6, 4, 3)}, strides=[2]),
    "gemm": one("Gemm", [2, 5], {"w": weights(5, 4), "b": weights(4)}),
    "matmul_rows": one("MatMul", [2, 3, 5], {"w": weights(5, 4)}),
    "matmul_left": network([node("MatMul", "w x", "y")], {"x": [2, 3, 5]}, ["y"], {"w": weights(4, 3)}),
    "relu": one("Relu", [2, 50]),
    "clip": one("Clip", [2, 50], {"lo": np.float32(-0.5), "hi": np.float32(0.7)}),
    "leaky": one("LeakyRelu", [2, 50], alpha=0.2),
    "prelu": one("PRelu", IMAGE, {"s": weights(6, 1, 1)}),
    "elu": one("Elu", [2, 50], alpha=0.7),
    "selu": one("Selu", [2, 50]),
    "sigmoid": one("Sigmoid", [2, 50]),
    "hard_sigmoid": one("HardSigmoid", [2, 50]),
    "hard_swish": one("HardSwish", IMAGE),
    "softplus": one("Softplus", [2, 50]),
    "mish": network([node("Softplus", "x", "s"), node("Tanh", "s", "t"), node("Mul", "x t", "y")], {"x": IMAGE}, ["y"]),
    "erf": one("Erf", [2, 50]),
    "gelu": network([node("Gelu", "x", "y")], {"x": [2, 50]}, ["y"], opset=20),
    "gelu_tanh": network([node("Gelu", "x", "y", approximate="tanh")], {"x": [2, 50]}, ["y"], opset=20),
    "tanh": one("Tanh", [2, 50]),
    "softmax": one("Softmax", [2, 5, 4], axis=1),
    "log_softmax": one("LogSoftmax", [2, 5], axis=1),
    "power": one("Pow", [2, 5], {"e": np.float32(2)}),
    "square_root": network([node("Abs", "x", "a"), node("Sqrt", "a", "y")], {"x": [2, 50]}, ["y"]),
    "reciprocal": network([node("Exp", "x", "a"), node("Reciprocal", "a", "y")], {"x": [2, 5]}, ["y"]),
    "max_pool": one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max_pool_dilated": one("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2]),
    "max_pool_ceil": one("MaxPool", [2, 3, 8, 6], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max_pool_ceil_padded": one(
        "MaxPool", [2, 3, 8, 6], kernel_shape=[2, 3], strides=[3, 2], pads=[0, 1, 1, 0], ceil_mode=1
    ),
    "average_pool": one("AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    "average_pool_padding": one(
        "AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "global_average": one("GlobalAveragePool", IMAGE),
    "global_max": one("GlobalMaxPool", IMAGE),
    "reduce_mean": network(
        [node("ReduceMean", "x a", "y", keepdims=0)], {"x": [2, 3, 4]}, ["y"], {"a": np.array([2])}, opset=20
    ),
    "reduce_max": network([node("ReduceMax", "x a", "y")], {"x": [2, 3, 4]}, ["y"], {"a": np.array([1])}, opset=20),
    "layer_norm": one("LayerNormalization", [2, 3, 8], {"g": weights(8), "b": weights(8)}, axis=-1),
    "instance_norm": one("InstanceNormalization", IMAGE, {"g": weights(6), "b": weights(6)}),
    "pad_reflect": one("Pad", IMAGE, {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])}, mode="reflect"),
    "pad_edge": one("Pad", IMAGE, {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])}, mode="edge"),
    "pad_constant": one("Pad", IMAGE, {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1]), "v": np.float32(1.5)}),
    "slice": one("Slice", IMAGE, ranges([1, 1], [8, 6], [2, 3], [2, 1])),
    "slice_back": one("Slice", IMAGE, ranges([-1], [-100], [3], [-1])),
    "tile": one("Tile", [2, 3, 4], {"r": np.array([1, 2, 3])}),
    "expand": one("Expand", [2, 1, 4], {"r": np.array([2, 3, 4])}),
    "gather": one("Gather", [2, 5, 4], {"i": np.array([0, 4, 4])}, axis=1),
    "depth_to_space": one("DepthToSpace", [2, 8, 3, 4], blocksize=2),
    "space_to_depth": one("SpaceToDepth", [2, 3, 4, 6], blocksize=2),
    "transpose": one("Transpose", [2, 3, 4], perm=[0, 2, 1]),
    "squeeze": one("Squeeze", [2, 1, 4], {"a": np.array([1])}),
    "split": network(
        [helper.make_node("Split", ["x", "n"], ["p", "q"], name="p", axis=1), node("Concat", "q p q", "y", axis=1)],
        {"x": [2, 3, 4]}, ["y"], {"n": np.array([1, 2])},
    ),
    "resize_nearest": network(
        [helper.make_node("Resize", ["x", "", "f"], ["y"], name="y", mode="nearest")],
        {"x": [2, 3, 4, 5]}, ["y"], {"f": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize_linear": network(
        [helper.make_node("Resize", ["x", "", "f"], ["y"], name="y", mode="linear")],
        {"x": [2, 3, 4, 6]}, ["y"], {"f": np.array([1, 1, 1.5, 2], np.float32)},
    ),
    "resize_cubic": network(
        [helper.make_node("Resize", ["x", "", "f"], ["y"], name="y", mode="cubic")],
        {"x": [2, 3, 6, 6]}, ["y"], {"f": np.array([1, 1, 2, 0.5], np.float32)},
    ),
    "excite": network(
        [node("GlobalAveragePool", "x", "m"), node("Conv", "m w", "c"), node("Sigmoid", "c", "s"),
         node("Mul", "x s", "y")],
        {"x": IMAGE}, ["y"], {"w": weights(6, 6, 1, 1)},
    ),
    "attention": network(
        [node("MatMul", "x q", "a"), node("Transpose", "a", "t", perm=[0, 2, 1]), node("MatMul", "a t", "l"),
         node("Softmax", "l", "p", axis=-1), node("MatMul", "p a", "y")],
        {"x": [2, 4, 6]}, ["y"], {"q": weights(6, 6, scale=0.4)},
    ),
    "where": network(
        [node("Greater", "x z", "c"), node("Where", "c x v", "y")], {"x": [2, 3, 4]}, ["y"],
        {"z": np.zeros(4, np.float32), "v": weights(4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operators_gradient_is_that_of_central_differences(name: str) -> None:
    xs, along, totals = gradients()
    x, direction_of_y, gradient = xs[f"{name}:x"], along[f"{name}:y"], totals[f"{name}:x"].astype(np.float64)
    runner, dtype = session(CASES[name])
    # Small enough to pass no kink: with float32's larger step none of an activation, and hardly one of a maximum.
    step = 1e-8 if dtype == np.float64 else 5e-4
    tolerance = 2e-4 if dtype == np.float64 else 1e-2
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = rng.choice([-1.0, 1.0], x.shape)
        up, down = (
            runner.run(None, {"x": (x + sign * step * direction).astype(dtype)})[0].astype(np.float64)
            for sign in (1.0, -1.0)
        )
        wanted = ((up - down) * direction_of_y).sum() / (2 * step)
        found = (gradient * direction).sum()
        assert abs(found - wanted) <= tolerance * (np.abs(gradient * direction).sum() + 1e-3)


def test_one_window_over_everything_is_not_differentiated_place_by_place() -> None:
    def functions(size: int) -> int:
        mod = import_onnx(one("GlobalMaxPool", [1, 2, size, size]))
        loss = RelaxLoss("projection", projection, None, True)
        builder, _ = add_gradients(mod, loss, ["y"], lambda *_: None, every_input=True)
        return len(builder.build({}).functions)

    assert functions(24) == functions(3) < 20
