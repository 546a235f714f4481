"""Small ONNX networks from a few lines, what canonical means, and the comparison with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tvm
from onnx import helper, numpy_helper
from tvm import relax

from tvm_mpq.frontend import import_onnx, io_specs, operators

# What each kind's body may call, in order; "?" may be absent.
BODIES = {
    "conv2d": ["nn.conv2d", "add?", "activation?"],
    "depthwise_conv2d": ["nn.conv2d", "add?", "activation?"],
    "conv2d_transpose": ["nn.conv2d_transpose", "add?", "activation?"],
    "matmul": ["matmul", "add?", "activation?"],
    "add": ["add", "activation?"],
    "broadcast_add": ["add", "activation?"],
    "sub": ["subtract", "activation?"],
    "mul": ["multiply", "activation?"],
    "activation": ["activation"],
    "max_pool2d": ["nn.max_pool2d"],
    "avg_pool2d": ["nn.avg_pool2d"],
    "global_avg_pool": ["mean"],
    "concat": ["concat"],
    "reshape": ["reshape"],
    "permute_dims": ["permute_dims"],
    "softmax": ["nn.softmax"],
    "sigmoid": ["sigmoid"],
    "slice": ["strided_slice"],
    "resize_nearest": ["image.resize2d"],
    "resize_linear": ["image.resize2d"],
    "layer_norm": ["nn.layer_norm"],
    "batch_matmul": ["matmul"],
}


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None] | None],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
    dtypes: Mapping[str, int] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A network; inputs and outputs are float32 unless ``dtypes`` says otherwise."""
    types = dict(dtypes or {})
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), None)
            for name in outputs
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def weights(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def batch_norm(channels: int, prefix: str = "bn", seed: int = 7) -> dict[str, np.ndarray]:
    """Constants ``<prefix>_{gamma,beta,mean,var}``."""
    rng = np.random.default_rng(seed)
    values = {
        "gamma": rng.uniform(0.5, 1.5, channels),
        "beta": rng.standard_normal(channels),
        "mean": rng.standard_normal(channels),
        "var": rng.uniform(0.2, 2, channels),
    }
    return {f"{prefix}_{name}": value.astype(np.float32) for name, value in values.items()}


def batch_norm_node(source: str, output: str, prefix: str = "bn", **attributes: Any) -> onnx.NodeProto:
    names = [f"{prefix}_{name}" for name in ("gamma", "beta", "mean", "var")]
    return helper.make_node("BatchNormalization", [source, *names], [output], name=prefix, **attributes)


def kinds(mod: tvm.IRModule) -> list[str]:
    return [operator.kind for operator in operators(mod)]


def calls(function: relax.Function) -> list[relax.Call]:
    found = []
    for block in function.body.blocks:
        found += [binding.value for binding in block.bindings if isinstance(binding.value, relax.Call)]
    return found


def call_of(mod: tvm.IRModule, kind: str) -> relax.Call:
    """The first call in the body of the first operator of ``kind``: its convolution, pool, …"""
    name = next(operator.global_var_name for operator in operators(mod) if operator.kind == kind)
    return calls(mod[name])[0]


def assert_canonical(mod: tvm.IRModule) -> None:
    """Every sentence of ``docs/architecture.md`` about the canonical module that holds for any network."""
    relax.analysis.well_formed(mod)
    main = mod["main"]
    (block,) = main.body.blocks
    assert isinstance(block, relax.DataflowBlock)
    *front, last = [binding.value for binding in block.bindings]
    called = front if isinstance(last, relax.Tuple) else [*front, last]
    assert all(isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.GlobalVar) for call in called)
    found = operators(mod)
    assert len(found) == len(called)
    assert len({operator.name for operator in found}) == len(found)
    assert len({operator.global_var_name for operator in found}) == len(found)
    for operator in found:
        function = mod[operator.global_var_name]
        assert "global_symbol" not in function.attrs
        assert operator.global_var_name.isidentifier()
        if operator.kind in BODIES:
            _assert_body(function, BODIES[operator.kind])
    assert "R.Tensor" in mod.script()


def _assert_body(function: relax.Function, pattern: Sequence[str]) -> None:
    assert all(parameter.ty.dtype == "float32" for parameter in function.params)
    names = [call.op.name.removeprefix("relax.") for call in calls(function)]
    names = ["activation" if name in ("clip", "nn.relu") else name for name in names]
    for wanted in pattern:
        if names and names[0] == wanted.rstrip("?"):
            names.pop(0)
        else:
            assert wanted.endswith("?"), (pattern, names)
    assert not names, (pattern, names)


def run_canonical(mod: tvm.IRModule, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of ``mod`` built as it is."""
    executable = relax.build(mod, tvm.target.Target("llvm"))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    inputs, outputs = io_specs(mod)
    result = machine["main"](*[tvm.runtime.tensor(feeds[spec.name]) for spec in inputs])
    return [value.numpy() for value in ([result] if len(outputs) == 1 else result)]


def run_reference(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of ONNX Runtime, which changes nothing in the network."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def assert_agrees(
    model: onnx.ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 1e-4,
) -> tvm.IRModule:
    """Import ``model``, check that it is canonical and equals ONNX Runtime; return the canonical module."""
    mod = import_onnx(model, input_shapes)
    assert_canonical(mod)
    inputs, outputs = io_specs(mod)
    rng = np.random.default_rng(0)
    drawn = {
        spec.name: rng.standard_normal(spec.shape).astype(spec.dtype)
        if "float" in spec.dtype
        else rng.integers(0, 2, spec.shape).astype(spec.dtype)
        for spec in inputs
    }
    feeds = {**drawn, **(feeds or {})}
    expected = run_reference(model, feeds)
    for spec, ours, theirs in zip(outputs, run_canonical(mod, feeds), expected, strict=True):
        assert ours.shape == theirs.shape == spec.shape
        assert ours.dtype == theirs.dtype == np.dtype(spec.dtype)
        scale = np.abs(theirs.astype(np.float64)).max(initial=0.0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(float(scale), 1e-30))
    return mod
