"""Lower sums, differences and products of two tensors that broadcast, of which one may be a constant.

x = s_a (q_a − z_a), y = s_b (q_b − z_b)  ⇒  x · y / s = (q_a − z_a) (q_b − z_b) · (s_a s_b / s): the product is exact
in int32, the one rounding that of the requantization. A constant has the grid of its own values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from tvm_mpq.kernels import pointwise
from tvm_mpq.kernels.convolution import Output
from tvm_mpq.quantization.addition import addition_factors
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.tensors import Emitter

_OPERATIONS = {"broadcast_add": "add", "sub": "sub", "mul": "mul"}


@dataclass(frozen=True)
class _Operand:
    shape: tuple[int, ...]
    value: relax.Var | npt.NDArray[Any]
    grid: Grid | None


def lower_binary(emitter: Emitter, operation: Operation) -> relax.Var:
    """``broadcast_add``, ``sub`` or ``mul`` in the layout of the result."""
    left, right = _operands(emitter, operation)
    values = [left.value, right.value]
    shapes = pointwise.Broadcast(left.shape, right.shape, operation.output.shape)
    dims = operation.output.form_shape(operation.output.native)
    name = f"{_OPERATIONS[operation.kind]}_{operation.precision}"
    if operation.activations == "float32":
        body = read_body(operation.function)
        out = Output("float32", body.low, body.high)
        kernel = pointwise.binary(_OPERATIONS[operation.kind], shapes, out)
        return emitter.kernel(kernel, name, values, dims, "float32", operation.name)
    first, second, grid = left.grid, right.grid, operation.output.grid
    assert first is not None
    assert second is not None
    assert grid is not None
    if operation.kind == "mul":
        with np.errstate(over="ignore", under="ignore"):
            ratio = np.array([first.scale * second.scale / grid.scale]).astype(np.float32)
        zeros = np.array([first.zero_point, second.zero_point, grid.zero_point], np.int32)
        kernel = pointwise.quantized_product(shapes)
        return emitter.kernel(kernel, name, [*values, ratio, zeros], dims, "uint8", operation.name)
    factors, multiplier = addition_factors(first, second, grid, subtract=operation.kind == "sub")
    values += [factors, np.array([multiplier], np.float32), np.array([0, grid.zero_point], np.int32)]
    return emitter.kernel(pointwise.quantized_sum(shapes), name, values, dims, "uint8", operation.name)


def _operands(emitter: Emitter, operation: Operation) -> list[_Operand]:
    """Both sides in the order of the body, whose parameters are activations only."""
    layout = operation.output.native
    given = iter(operation.inputs)
    operands = []
    for argument in read_body(operation.function).root.args:
        if isinstance(argument, relax.Var):
            tensor = next(given)
            value = emitter.read(tensor, operation.activations, layout)
            operands.append(_Operand(tensor.shape, value, tensor.grid))
            continue
        constant = argument.value.numpy()
        grid = None
        shape = constant.shape
        if operation.activations == "uint8":
            grid = Grid.from_range(float(constant.min()), float(constant.max()))
            constant = grid.quantize(constant)
        if layout == "pixels":
            constant = constant.transpose(0, 2, 3, 1).reshape(-1, shape[1])
        operands.append(_Operand(shape, np.ascontiguousarray(constant), grid))
    return operands
