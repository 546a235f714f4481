"""Lower max, average and global average pooling.

An average of 8-bit codes is Σ (q − z) · s_in / (divisor · s_out): an exact integer sum and one requantization.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_mpq.kernels import pooling
from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import OperatorBody, read_body
from tvm_mpq.transform.tensors import Emitter


def lower_max_pool(emitter: Emitter, operation: Operation) -> relax.Var:
    """Maximum of each window; codes keep their grid."""
    shape = _window_shape(read_body(operation.function), operation)
    x = emitter.read(operation.inputs[0], operation.activations, "pixels")
    function = pooling.max_pool(shape, operation.activations)
    dims = operation.output.pixel_shape
    return emitter.kernel(
        function, f"max_pool_{operation.precision}", [x], dims, operation.activations, operation.name
    )


def lower_average_pool(emitter: Emitter, operation: Operation) -> relax.Var:
    """Mean of each window, with or without the padding in the divisor."""
    body = read_body(operation.function)
    shape = _window_shape(body, operation)
    counts = bool(body.attributes.count_include_pad)
    x = emitter.read(operation.inputs[0], operation.activations, "pixels")
    function = pooling.average_pool(shape, operation.activations, counts)
    arguments: list[object] = [x]
    if operation.activations == "uint8":
        covered = np.tile(_covered(shape), shape.batch)
        divisor = np.full_like(covered, shape.kernel[0] * shape.kernel[1]) if counts else covered
        arguments += _average_arguments(operation, divisor, covered)
    return emitter.kernel(
        function,
        f"average_pool_{operation.precision}",
        arguments,
        operation.output.pixel_shape,
        operation.activations,
        operation.name,
    )


def lower_global_average_pool(emitter: Emitter, operation: Operation) -> relax.Var:
    """Mean over the plane: [N·H·W, C] → [N, C]."""
    n, c, h, w = operation.inputs[0].shape
    x = emitter.read(operation.inputs[0], operation.activations, "pixels")
    function = pooling.global_average_pool(n, h * w, c, operation.activations)
    arguments: list[object] = [x]
    if operation.activations == "uint8":
        plane = np.array([h * w])
        arguments += _average_arguments(operation, plane, plane)
    name = f"global_average_pool_{operation.precision}"
    return emitter.kernel(function, name, arguments, (n, c), operation.activations, operation.name)


def _average_arguments(operation: Operation, divisor: np.ndarray, covered: np.ndarray) -> list[object]:
    source, out = operation.inputs[0].grid, operation.output.grid
    assert isinstance(source, Grid)
    assert isinstance(out, Grid)
    multiplier = (source.scale / (divisor * out.scale)).astype(np.float32)
    bias = (-source.zero_point * covered).astype(np.int32)
    return [multiplier, bias, np.array([source.zero_point, out.zero_point], np.int32)]


def _covered(shape: ConvolutionShape) -> np.ndarray:
    """Elements of each output pixel's window that are not padding, [out_height · out_width]."""

    def along(axis: int, extent: int, out: int) -> np.ndarray:
        first = np.arange(out)[:, None] * shape.stride[axis] - shape.padding[axis]
        taps = first + np.arange(shape.kernel[axis]) * shape.dilation[axis]
        return ((taps >= 0) & (taps < extent)).sum(axis=1)

    rows, columns = along(0, shape.height, shape.out_height), along(1, shape.width, shape.out_width)
    return np.outer(rows, columns).reshape(-1)


def _window_shape(body: OperatorBody, operation: Operation) -> ConvolutionShape:
    n, c, h, w = operation.inputs[0].shape
    attributes = body.attributes
    top, left, bottom, right = (int(value) for value in attributes.padding)
    return ConvolutionShape(
        batch=n,
        height=h,
        width=w,
        in_channels=c,
        out_channels=c,
        kernel=(int(attributes.pool_size[0]), int(attributes.pool_size[1])),
        stride=(int(attributes.strides[0]), int(attributes.strides[1])),
        padding=(top, left, bottom, right),
        dilation=(int(attributes.dilation[0]), int(attributes.dilation[1])),
    )
