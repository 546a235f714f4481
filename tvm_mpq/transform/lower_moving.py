"""Lower what takes elements of one tensor, or means of neighbours: reshapes, transposes, slices, resizes.

They run on codes as on floats: a move keeps its input's dtype and grid.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_mpq.kernels.resize import WEIGHT_BITS, Resize, resize_linear, resize_nearest
from tvm_mpq.quantization.sampling import linear, nearest
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.tensors import Emitter, Layout


def lower_move(emitter: Emitter, operation: Operation) -> relax.Var:
    """A reshape or transpose of the stored elements, in ONNX's order."""
    x = emitter.read(operation.inputs[0], operation.stored, "plain")
    call = read_body(operation.function).root
    if operation.kind == "reshape":
        y = emitter.builder.emit(relax.op.reshape(x, operation.output.shape), operation.name)
    else:
        y = emitter.builder.emit(relax.op.permute_dims(x, call.attrs.axes), operation.name)
    operation.output.forms[operation.stored, "plain"] = y
    return y


def lower_slice(emitter: Emitter, operation: Operation) -> relax.Var:
    """A part of the stored elements: of pixels where whole channels are taken, else in ONNX's order."""
    call = read_body(operation.function).root
    axes, begin, end = ([int(value.value) for value in argument] for argument in call.args[1:4])
    layout: Layout = "pixels" if len(operation.output.shape) == 4 and axes == [1] else "plain"
    x = emitter.read(operation.inputs[0], operation.stored, layout)
    y = emitter.builder.emit(relax.op.strided_slice(x, axes, begin, end), operation.name)
    operation.output.forms[operation.stored, layout] = y
    return y


def lower_resize(emitter: Emitter, operation: Operation) -> relax.Var:
    """``resize_nearest`` and ``resize_linear`` of pixels, by tables made here."""
    n, c, h, w = operation.inputs[0].shape
    _, _, out_height, out_width = operation.output.shape
    shape = Resize(n, h, w, c, out_height, out_width)
    attributes = read_body(operation.function).attributes
    mode = str(attributes.coordinate_transformation_mode)
    dtype = operation.activations
    x = emitter.read(operation.inputs[0], dtype, "pixels")
    dims = operation.output.pixel_shape
    sizes = ((h, out_height), (w, out_width))
    if operation.kind == "resize_nearest":
        tables = [nearest(*each, mode, str(attributes.rounding_method)) for each in sizes]
        kernel = resize_nearest(shape, dtype)
        return emitter.kernel(kernel, "resize_nearest", [x, *tables], dims, dtype, operation.name)
    (rows, down), (columns, right) = (linear(*each, mode) for each in sizes)
    weights = [down.astype(np.float32), right.astype(np.float32)]
    if dtype == "uint8":
        grid = operation.output.grid
        assert grid is not None
        weights = [np.rint(each * 2**WEIGHT_BITS).astype(np.int32) for each in (down, right)]
        weights.append(np.array([grid.zero_point], np.int32))
    kernel = resize_linear(shape, dtype)
    name = f"resize_linear_{operation.precision}"
    return emitter.kernel(kernel, name, [x, rows, columns, *weights], dims, dtype, operation.name)
