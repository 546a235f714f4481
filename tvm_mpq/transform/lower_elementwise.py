"""Lower sums, lone activations and concatenations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from tvm_mpq.kernels import elementwise, joining
from tvm_mpq.kernels.convolution import Output
from tvm_mpq.kernels.cuda import plain
from tvm_mpq.quantization.addition import addition_factors
from tvm_mpq.transform.lower_pointwise import lower_pointwise
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.tensors import Emitter, Layout, Tensor


def lower_add(emitter: Emitter, operation: Operation) -> relax.Var:
    """a + b in whichever layout they are held; in 8 bits in fixed point (``quantization.addition``)."""
    layout = operation.output.native
    a, b = (emitter.read(tensor, operation.activations, layout) for tensor in operation.inputs)
    shape = operation.output.form_shape(layout)
    if operation.activations == "float32":
        body = read_body(operation.function)
        function = elementwise.add(shape, Output("float32", body.low, body.high))
        return emitter.kernel(function, "add_fp32", [a, b], shape, "float32", operation.name)
    left, right = operation.inputs
    arguments = [a, b, *addition_arguments(left, right, operation.output)]
    return emitter.kernel(
        elementwise.add(shape, Output("uint8")), "add_w8a8", arguments, shape, "uint8", operation.name
    )


def addition_arguments(left: Tensor, right: Tensor, out: Tensor) -> list[npt.NDArray[Any]]:
    """factors int32[3], multiplier float32[1] and grid int32[2] of a sum in 8 bits, as kernels take them."""
    assert left.grid is not None
    assert right.grid is not None
    assert out.grid is not None
    factors, multiplier = addition_factors(left.grid, right.grid, out.grid)
    return [factors, np.array([multiplier], np.float32), np.array([0, out.grid.zero_point], np.int32)]


def lower_activation(emitter: Emitter, operation: Operation) -> relax.Var:
    """A lone relu or clip: in 8 bits a change of grid, whose saturation is the clip.

    No grid lies inside a clip that shuts out zero: that is a function like any other, by table.
    """
    body = read_body(operation.function)
    if operation.activations == "uint8" and not body.low <= 0.0 < body.high:
        return lower_pointwise(emitter, operation)
    layout = operation.output.native
    x = emitter.read(operation.inputs[0], operation.activations, layout)
    shape = operation.output.form_shape(layout)
    if operation.activations == "float32":
        function = elementwise.activation(shape, Output("float32", body.low, body.high))
        return emitter.kernel(function, "activation_fp32", [x], shape, "float32", operation.name)
    source, out = operation.inputs[0].grid, operation.output.grid
    assert source is not None
    assert out is not None
    arguments = [
        x,
        np.array([source.scale / out.scale], np.float32),
        np.array([source.zero_point, out.zero_point], np.int32),
    ]
    return emitter.kernel(
        elementwise.rescale(shape), "activation_w8a8", arguments, shape, "uint8", operation.name
    )


def lower_concat(emitter: Emitter, operation: Operation) -> relax.Var:
    """Join along ONNX's axis; channels are the last axis of pixels, other axes of rank 4 are joined in plain form."""
    rank = len(operation.output.shape)
    axis = int(read_body(operation.function).attributes.axis) % rank
    pixels = rank == 4 and axis == 1
    layout: Layout = "pixels" if pixels else "plain"
    at = 1 if pixels else axis
    shapes = [tensor.form_shape(layout) for tensor in operation.inputs]
    rows = math.prod(shapes[0][:at])
    arguments: list[relax.Expr | npt.NDArray[Any]] = [
        _as_rows(emitter, emitter.read(tensor, operation.activations, layout), rows)
        for tensor in operation.inputs
    ]
    rescaled = [False] * len(shapes)
    if operation.activations == "uint8":
        grids = [tensor.grid for tensor in (*operation.inputs, operation.output)]
        out = grids[-1]
        assert out is not None
        rescaled = [grid != out for grid in grids[:-1]]
        if any(rescaled):
            arguments.append(np.array([g.scale / out.scale for g in grids[:-1] if g is not None], np.float32))
            arguments.append(np.array([g.zero_point for g in grids if g is not None], np.int32))
    concat = plain.concat if emitter.gpu else joining.concat
    function = concat(shapes, at, operation.activations, rescaled)
    shape = operation.output.form_shape(layout)
    dims = (rows, math.prod(shape) // rows)
    result = emitter.kernel(
        function, f"concat_{operation.precision}", arguments, dims, operation.activations, operation.name
    )
    if dims != shape:
        result = emitter.builder.emit(relax.op.reshape(result, shape), operation.name)
    operation.output.forms[operation.activations, layout] = result
    return result


def _as_rows(emitter: Emitter, x: relax.Var, rows: int) -> relax.Var:
    shape = [int(extent) for extent in x.ty.shape]
    if len(shape) == 2 and shape[0] == rows:
        return x
    return emitter.builder.emit(relax.op.reshape(x, (rows, math.prod(shape) // rows)), f"{x.name}_rows")
