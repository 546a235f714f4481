"""An annotated network in NumPy's integers: what the compiled package must equal byte for byte.

It reads the module that AssignGrids leaves and knows nothing of kernels, layouts or lowering. Tensors are in ONNX's
order; an 8-bit one is held as int64 codes with its grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from reference import (
    convolve,
    convolve_transposed,
    quantized_average,
    quantized_product,
    quantized_sum,
    rescaled,
    resized,
    tabulated,
    windows,
)
from tvm import relax

from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.precision import Precision
from tvm_mpq.quantization.bias import quantize_bias
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.phases import phase_values, phase_weights
from tvm_mpq.quantization.requantize import requantize, requantize_multiplier
from tvm_mpq.quantization.rounding import fit_accumulator, round_to_nearest
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.operator_body import OperatorBody, read_body, read_pointwise


@dataclass(frozen=True)
class Value:
    """uint8 codes on ``grid``, or float32."""

    array: np.ndarray
    grid: Grid | None

    @property
    def codes(self) -> np.ndarray:
        assert self.grid is not None
        return self.grid.quantize(self.array) if self.array.dtype == np.float32 else self.array

    @property
    def real(self) -> np.ndarray:
        if self.array.dtype == np.float32:
            return self.array
        assert self.grid is not None
        return self.grid.dequantize(self.array)


def interpret(annotated: tvm.IRModule, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a module of which every operator is executed on 8-bit activations."""
    main = annotated["main"]
    grids = attr.input_grids(main)
    values = {
        parameter: Value(feeds[name], grids.get(name))
        for name, parameter in zip(attr.names(main, attr.INPUTS), main.params, strict=True)
    }
    for variable, function, call in attr.calls(annotated):
        inputs = [values[argument] for argument in call.args]
        values[variable] = _operator(function, inputs)
        assert values[variable].array.shape == tuple(int(extent) for extent in variable.ty.shape)
        assert values[variable].array.dtype == attr.text(function, attr.STORED)
    return [values[result].real for result in attr.results(annotated)]


def _operator(function: relax.Function, inputs: list[Value]) -> Value:
    kind = attr.text(function, attr.KIND)
    body = read_body(function)
    out = None
    if attr.text(function, attr.SCALE):
        out = Grid(float(function.attrs[attr.SCALE]), int(function.attrs[attr.ZERO_POINT]))
    first = inputs[0]
    if kind in ("conv2d", "depthwise_conv2d", "matmul"):
        stored = out if attr.text(function, attr.STORED) == "uint8" else None
        return _weighted(kind, body, first, stored, attr.executed(function))
    if kind == "conv2d_transpose":
        stored = out if attr.text(function, attr.STORED) == "uint8" else None
        made = [int(extent) for extent in function.ret_ty.shape]
        return _transposed(body, first, stored, attr.executed(function), made)
    assert out is not None
    source = first.grid
    assert source is not None
    if kind == "reshape":
        return Value(first.array.reshape([int(extent) for extent in function.ret_ty.shape]), out)
    if kind == "slice":
        places = [slice(None)] * first.array.ndim
        axes, begins, ends = ([int(value.value) for value in each] for each in body.root.args[1:4])
        for axis, begin, end in zip(axes, begins, ends, strict=True):
            places[axis] = slice(begin, end)
        return Value(first.array[tuple(places)], out)
    if kind in ("resize_nearest", "resize_linear"):
        a = body.attributes
        size = [int(extent) for extent in function.ret_ty.shape][2:]
        nearest = str(a.rounding_method) if kind == "resize_nearest" else None
        return Value(resized(first.array, size, str(a.coordinate_transformation_mode), nearest, source), out)
    if kind == "permute_dims":
        return Value(first.array.transpose([int(axis) for axis in body.attributes.axes]), out)
    if kind in ("pointwise", "sigmoid") or (kind == "activation" and not body.low <= 0.0 < body.high):
        return Value(tabulated(first.codes, read_pointwise(function).evaluate, source, out), out)
    if kind == "activation":
        return Value(rescaled(first.codes, source, out), out)
    if kind == "concat":
        parts = [rescaled(value.codes, value.grid, out) for value in inputs]
        return Value(np.concatenate(parts, int(body.attributes.axis)), out)
    if kind in ("add", "broadcast_add", "sub", "mul"):
        a, b = _operands(body, inputs)
        assert a.grid is not None
        assert b.grid is not None
        if kind == "mul":
            return Value(quantized_product(a.codes, b.codes, (a.grid, b.grid), out), out)
        return Value(quantized_sum(a.codes, b.codes, (a.grid, b.grid), out, subtract=kind == "sub"), out)
    nhwc = first.codes.transpose(0, 2, 3, 1)
    if kind == "global_avg_pool":
        pooled = quantized_average(nhwc, _shape(nhwc, nhwc.shape[1:3]), source, out, False)
    elif kind == "avg_pool2d":
        pooled = quantized_average(
            nhwc, _pool(body, nhwc), source, out, bool(body.attributes.count_include_pad)
        )
    else:
        assert kind == "max_pool2d"
        assert out == source
        pooled = windows(nhwc, _pool(body, nhwc), -np.inf)[0].max(axis=0).astype(np.uint8)
    return Value(pooled.transpose(0, 3, 1, 2), out)


def _operands(body: OperatorBody, inputs: list[Value]) -> list[Value]:
    """Both sides of a sum or product; a constant has the grid of its values."""
    given = iter(inputs)
    operands = []
    for argument in body.root.args:
        if isinstance(argument, relax.Var):
            operands.append(next(given))
        else:
            constant = argument.value.numpy()
            operands.append(Value(constant, Grid.from_range(float(constant.min()), float(constant.max()))))
    return operands


def _weighted(kind: str, body: OperatorBody, x: Value, out: Grid | None, precision: Precision) -> Value:
    """Σ (q − z)·w + b in integers, then one multiplication: to ``out``'s codes, or to float where it is None."""
    weight, source = body.weight, x.grid
    assert weight is not None
    assert source is not None
    rows = weight.T[:, :, None, None] if kind == "matmul" else weight
    codes, bias, scale = _codes(kind, rows, body.bias, source, precision)
    shifted = x.codes.astype(np.int64) - source.zero_point
    if kind == "matmul":
        sums = shifted @ codes[:, :, 0, 0].T
    else:
        sums = convolve(shifted.transpose(0, 2, 3, 1), codes, _convolution(body, shifted.shape))
    result = _finish(sums + bias, scale, source, out, body)
    return Value(result if kind == "matmul" else result.transpose(0, 3, 1, 2), out)


def _codes(
    kind: str, rows: np.ndarray, bias: np.ndarray | None, source: Grid, precision: Precision
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integer weights int64 of ``rows``' shape [O, I, R, S], bias on the accumulator's grid [O], scale [O]."""
    assert precision.integer_activations
    bias = np.zeros(len(rows), np.float32) if bias is None else bias
    paired = kind != "depthwise_conv2d"
    quantized = round_to_nearest(rows, precision.weight_bits, precision.group, paired=paired)
    quantized = fit_accumulator(quantized, rows, bias, source.scale, paired)
    codes = quantized.codes.astype(np.int64) * quantized.element_multiplier
    return codes, quantize_bias(bias, source.scale, quantized.scale), quantized.scale


def _finish(
    total: np.ndarray, scale: np.ndarray, source: Grid, out: Grid | None, body: OperatorBody
) -> np.ndarray:
    assert np.abs(total).max() < 2**31
    accumulator = total.astype(np.int32)
    multiplier = requantize_multiplier(source.scale, scale, 1.0 if out is None else out.scale)
    if out is None:
        result = accumulator.astype(np.float32) * multiplier
        return np.clip(result, np.float32(body.low), np.float32(body.high))
    return requantize(accumulator, multiplier, out.zero_point)


def _transposed(
    body: OperatorBody, x: Value, out: Grid | None, precision: Precision, result: list[int]
) -> Value:
    """Every product to its place; a channel has a scale for each phase of the stride."""
    weight, source = body.weight, x.grid
    assert weight is not None
    assert source is not None
    a = body.attributes
    groups, stride = int(a.groups), (int(a.strides[0]), int(a.strides[1]))
    padding = [int(extent) for extent in a.padding]
    (n, k, height, width), c = result, weight.shape[0]
    kind = "depthwise_conv2d" if groups == c > 1 else "conv2d"
    bias = np.zeros(k, np.float32) if body.bias is None else body.bias
    codes, biases, scales = _codes(
        kind, phase_weights(weight, groups, stride), phase_values(bias, groups, stride), source, precision
    )
    places = (groups, *stride, k // groups)
    phases = codes.reshape(*places, c // groups, *codes.shape[2:])
    whole = np.zeros(weight.shape, np.int64).reshape(groups, c // groups, k // groups, *weight.shape[2:])
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            taps = phases[:, i % stride[0], j % stride[1], :, :, ::-1, ::-1]
            whole[..., i, j] = taps[..., i // stride[0], j // stride[1]].transpose(0, 2, 1)
    shifted = (x.codes.astype(np.int64) - source.zero_point).transpose(0, 2, 3, 1)
    sums = convolve_transposed(shifted, whole.reshape(weight.shape), groups, stride, padding, (height, width))
    rows, columns = (
        (np.arange(extent) + pad) % step
        for extent, pad, step in zip((height, width), padding, stride, strict=False)
    )
    made = np.zeros((n, height, width, k), np.float32 if out is None else np.uint8)
    for p in range(stride[0]):
        for q in range(stride[1]):
            at = np.ix_(range(n), np.flatnonzero(rows == p), np.flatnonzero(columns == q), range(k))
            each = [values.reshape(places)[:, p, q].reshape(-1) for values in (biases, scales)]
            made[at] = _finish(sums[at] + each[0], each[1], source, out, body)
    return Value(made.transpose(0, 3, 1, 2), out)


def _convolution(body: OperatorBody, source: tuple[int, ...]) -> ConvolutionShape:
    a, (outputs, _, r, s) = body.attributes, body.weight.shape
    n, c, h, w = source
    pair = [tuple(int(extent) for extent in each) for each in (a.strides, a.padding, a.dilation)]
    return ConvolutionShape(n, h, w, c, outputs, (r, s), pair[0], pair[1], pair[2], int(a.groups))


def _pool(body: OperatorBody, nhwc: np.ndarray) -> ConvolutionShape:
    a = body.attributes
    pool, strides, padding, dilation = (
        tuple(int(extent) for extent in each) for each in (a.pool_size, a.strides, a.padding, a.dilation)
    )
    return _shape(nhwc, pool, strides, padding, dilation)


def _shape(nhwc: np.ndarray, *others: tuple[int, ...]) -> ConvolutionShape:
    n, h, w, c = nhwc.shape
    return ConvolutionShape(n, h, w, c, c, *others)
