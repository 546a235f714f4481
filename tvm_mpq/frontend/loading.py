"""Reading ONNX files: what is wrong with one is said here, in one line, before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend.input_shapes import fix_input_shapes

# Attributes of some operators were inputs, or shapes broadcast along a named axis, before this version.
OLDEST_OPSET = 7
# Infinity is no accident as a bound, a mask or padding; as a weight of one of these it spoils everything.
_WEIGHTED = {
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "GRU",
    "InstanceNormalization",
    "LayerNormalization",
    "LSTM",
    "MatMul",
    "PRelu",
    "RNN",
}


def load_onnx(path: str | Path, input_shapes: Mapping[str, Sequence[int]] | None = None) -> onnx.ModelProto:
    """The network in the file ``path``, checked, with fixed input shapes and inferred shapes everywhere else.

    ``input_shapes`` maps the names of inputs with open sizes to their sizes. Weights in external files are
    read in. Raises MpqError for a file that is missing, no ONNX, truncated or invalid, for weights that are
    not finite, and for input shapes that are missing or do not fit.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MpqError(f"cannot read {path}: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        raise MpqError(f"{path} is not an ONNX file, or is truncated") from None
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise MpqError(f"{path} is not an ONNX file, or is truncated")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise MpqError(f"{path}: cannot read its external weights: {first_line(error)}") from None
    return prepare(model, input_shapes, str(path))


def prepare(
    model: onnx.ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    origin: str = "the network",
) -> onnx.ModelProto:
    """What :func:`load_onnx` does with a network that is in memory; ``model`` itself stays as it was."""
    version = default_opset(model)
    if version < OLDEST_OPSET:
        raise MpqError(
            f"{origin} uses ONNX opset {version}, older than {OLDEST_OPSET}: convert it first with "
            "onnx.version_converter.convert_version(model, 13)"
        )
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    if fixed.functions:
        fixed = onnx.inliner.inline_local_functions(fixed)
    fix_input_shapes(fixed.graph, input_shapes or {})
    for output in fixed.graph.output:
        # The checker wants one, the shapes found below will be true.
        output.type.tensor_type.shape.SetInParent()
    _check_valid(fixed, origin)
    _check_finite(fixed.graph)
    # Shapes written for other input shapes would contradict what follows from the fixed ones.
    del fixed.graph.value_info[:]
    for output in fixed.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception as error:
        raise MpqError(f"{origin}: the shapes do not fit together: {first_line(error)}") from None


def default_opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that ``model`` uses; 1 where it imports none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def first_line(error: BaseException) -> str:
    """An exception's message cut to its first line with text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _check_valid(model: onnx.ModelProto, origin: str) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        # An operator unknown to the checker may be known to TVM; if not, its import names the node.
        if not first_line(error).startswith("No Op registered for"):
            raise MpqError(f"{origin} is not valid ONNX: {first_line(error)}") from None


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _check_finite(graph: onnx.GraphProto) -> None:
    weights = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    for name, tensor in _tensors(graph):
        if tensor.data_type not in (
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.FLOAT16,
            onnx.TensorProto.BFLOAT16,
            onnx.TensorProto.DOUBLE,
        ):
            continue
        values = numpy_helper.to_array(tensor).astype(np.float64)
        if np.isnan(values).any():
            raise MpqError(f"initializer {name!r} holds NaN")
        if name in weights and np.isinf(values).any():
            raise MpqError(f"initializer {name!r} holds infinity")
