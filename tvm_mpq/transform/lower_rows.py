"""Lower what runs in float along rows: softmax, layer norm, and products of two activations."""

from __future__ import annotations

import math

from tvm import relax
from tvm.tirx import PrimFunc

from tvm_mpq.kernels import rows
from tvm_mpq.kernels.batched_matmul import batched_matmul
from tvm_mpq.kernels.cuda import rows as cuda_rows
from tvm_mpq.kernels.cuda.products import float_products, half_products
from tvm_mpq.kernels.intrinsic import FLOAT
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.tensors import Emitter, Layout


def lower_softmax(emitter: Emitter, operation: Operation) -> relax.Var:
    """Along the last axis; along the channels of pixels; along another axis once that is turned to be the last."""
    shape = operation.output.shape
    axis = int(read_body(operation.function).attributes.axis) % len(shape)
    layout: Layout = "pixels" if len(shape) == 4 and axis == 1 else "plain"
    x = emitter.read(operation.inputs[0], "float32", layout)
    held = operation.output.form_shape(layout)
    turned = [place for place in range(len(held)) if place != axis] + [axis]
    turns = layout == "plain" and axis != len(held) - 1
    if turns:
        x = emitter.builder.emit(relax.op.permute_dims(x, turned), f"{operation.name}_turned")
    length = shape[axis]
    softmax = cuda_rows.softmax if emitter.gpu else rows.softmax
    y = _by_rows(emitter, operation, softmax(math.prod(shape) // length, length), "softmax", x, length)
    if turns:
        back = [turned.index(place) for place in range(len(held))]
        y = emitter.builder.emit(relax.op.permute_dims(y, back), operation.name)
    operation.output.forms["float32", layout] = y
    return y


def lower_layer_norm(emitter: Emitter, operation: Operation) -> relax.Var:
    """Along the last axis of the tensor in its own shape."""
    shape = operation.output.shape
    call = read_body(operation.function).root
    x = emitter.read(operation.inputs[0], "float32", "plain")
    layer_norm = cuda_rows.layer_norm if emitter.gpu else rows.layer_norm
    kernel = layer_norm(math.prod(shape) // shape[-1], shape[-1], float(call.attrs.epsilon))
    constants = [call.args[1], call.args[2]]
    y = _by_rows(emitter, operation, kernel, "layer_norm", x, shape[-1], constants)
    operation.output.forms["float32", "plain"] = y
    return y


def lower_batch_matmul(emitter: Emitter, operation: Operation, instruction: str) -> relax.Var:
    """a [.., M, K] · b [.., K, N] with equal leading axes."""
    left, right = (tensor.shape for tensor in operation.inputs)
    batch = math.prod(left[:-2])
    operands = []
    for tensor, shape in zip(operation.inputs, (left, right), strict=True):
        value = emitter.read(tensor, "float32", "plain")
        operands.append(
            emitter.builder.emit(relax.op.reshape(value, (batch, *shape[-2:])), f"{operation.name}_batch")
        )
    extents = batch, left[-2], left[-1], right[-1]
    if not emitter.gpu:
        kernel = batched_matmul(*extents, FLOAT[instruction].lanes)
    else:
        make = half_products if operation.executed.half_activations else float_products
        kernel = make(*extents)
    dims = (batch, left[-2], right[-1])
    y = emitter.kernel(kernel, "batch_matmul", operands, dims, "float32", operation.name)
    y = emitter.builder.emit(relax.op.reshape(y, operation.output.shape), operation.name)
    operation.output.forms["float32", "plain"] = y
    return y


def _by_rows(
    emitter: Emitter,
    operation: Operation,
    kernel: PrimFunc,
    name: str,
    x: relax.Var,
    length: int,
    constants: list[relax.Expr] | None = None,
) -> relax.Var:
    """``kernel`` on the rows of ``length`` elements that ``x`` is made of, in ``x``'s shape."""
    shape = [int(extent) for extent in x.ty.shape]
    dims = (math.prod(shape) // length, length)
    flat = x
    if len(shape) != 2:
        flat = emitter.builder.emit(relax.op.reshape(x, dims), f"{operation.name}_rows")
    y = emitter.kernel(kernel, name, [flat, *(constants or [])], dims, "float32", operation.name)
    return y if len(shape) == 2 else emitter.builder.emit(relax.op.reshape(y, shape), operation.name)
