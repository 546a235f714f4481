"""Lower convolutions, depthwise convolutions and matrix multiplications to templated kernels with packed weights.

float32:  y = activation(Σ x·w + b)
w8a8:     x = s_x (q_x − z_x), w = s_w q_w  ⇒  y / s_y = (Σ (q_x − z_x) q_w + b / (s_x s_w)) · (s_x s_w / s_y)
so the kernel sums integers, adds the bias on the accumulator's grid and requantizes with one multiplier a channel. An
output that stays in float is the same sum times s_x s_w. The activation needs no code in 8 bits: the output's grid lies
inside its range, where saturation is the clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from tvm_mpq.gpu import CUDA
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.expand import ExpandForm
from tvm_mpq.kernels.neon import OFFSET
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.quantization.bias import fold_zero_point, quantize_bias
from tvm_mpq.quantization.half import to_half
from tvm_mpq.quantization.int16_sums import fitting_words
from tvm_mpq.quantization.requantize import requantize_multiplier
from tvm_mpq.quantization.rounding import check_shape, fit_accumulator, round_to_nearest
from tvm_mpq.quantization.storage import store
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.transform.lower_elementwise import addition_arguments
from tvm_mpq.transform.lower_weight_only import packed_constants, stays_packed, weight_only_codes
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import OperatorBody, read_body
from tvm_mpq.transform.tensors import Emitter, Layout
from tvm_mpq.transform.weight_layout import WeightLayout, weight_layout

Array = npt.NDArray[Any]

_OFFSETS = {"uint8": 0, "int8": OFFSET}
"""What instructions of bytes take off a code of an activation."""


def convolution_shape(body: OperatorBody, source: tuple[int, ...]) -> ConvolutionShape:
    """The extents of a canonical ``conv2d`` on an input of ONNX shape ``source``."""
    assert body.weight is not None
    attributes = body.attributes
    out_channels, _, r, s = body.weight.shape
    top, left, bottom, right = (int(value) for value in attributes.padding)
    return ConvolutionShape(
        batch=source[0],
        height=source[2],
        width=source[3],
        in_channels=source[1],
        out_channels=out_channels,
        kernel=(r, s),
        stride=(int(attributes.strides[0]), int(attributes.strides[1])),
        padding=(top, left, bottom, right),
        dilation=(int(attributes.dilation[0]), int(attributes.dilation[1])),
        groups=int(attributes.groups),
    )


def lower_convolution(
    emitter: Emitter, operation: Operation, instruction: str, addition: Operation | None = None
) -> relax.Var:
    """A ``conv2d`` of any kernel, stride, padding, dilation and groups: pixels in, pixels out.

    ``addition`` is a sum in 8 bits that alone reads the result. Where one kernel makes both, its output has its form
    afterwards and the convolution's has none.
    """
    body = read_body(operation.function)
    assert body.weight is not None
    shape = convolution_shape(body, operation.inputs[0].shape)
    return _lower_matrix(emitter, operation, body, body.weight, shape, "pixels", instruction, addition)


def emit_convolution(
    emitter: Emitter, operation: Operation, body: OperatorBody, shape: ConvolutionShape, instruction: str
) -> relax.Var:
    """The convolution ``shape`` of ``operation``'s input by ``body``'s weights, whatever the operator itself is."""
    assert body.weight is not None
    if shape.groups == shape.in_channels > 1:
        return _lower_depthwise(
            emitter, replace(operation, kind="depthwise_conv2d"), body, shape, instruction
        )
    return _lower_matrix(emitter, operation, body, body.weight, shape, "pixels", instruction)


def lower_matmul(emitter: Emitter, operation: Operation, instruction: str) -> relax.Var:
    """``x [.., C] · w [C, K]`` as a 1×1 convolution of rows."""
    body = read_body(operation.function)
    assert body.weight is not None
    source = operation.inputs[0].shape
    channels, out_channels = body.weight.shape
    shape = ConvolutionShape(math.prod(source) // channels, 1, 1, channels, out_channels)
    weight = body.weight.T[:, :, None, None]
    return _lower_matrix(emitter, operation, body, weight, shape, "plain", instruction)


def _lower_matrix(
    emitter: Emitter,
    operation: Operation,
    body: OperatorBody,
    weight: Array,
    shape: ConvolutionShape,
    layout: Layout,
    instruction: str,
    addition: Operation | None = None,
) -> relax.Var:
    family = "conv2d" if layout == "pixels" else "matmul"
    spec = KernelSpec(
        family,
        shape,
        operation.activations,
        _output(operation, body),
        instruction,
        weight_dtype=_weight_dtype(operation),
    )
    numbers, quantized = _numbers(operation, body, weight), None
    if not operation.any_codes:
        quantized = numbers.quantized
    if quantized is not None and operation.executed.weight_only:
        if instruction in CUDA:
            if operation.executed.half_activations:
                bits, group = quantized.bits, quantized.effective_group
                spec = replace(spec, halves=True, weight_bits=bits, weight_group=group)
        elif stays_packed(shape, quantized):
            bits = 2 if quantized.bits == 2 else 4
            spec = replace(
                spec, family="weight_only", weight_bits=bits, weight_group=quantized.effective_group
            )
    elif quantized is not None:
        words = fitting_words(numbers.weight)
        bits, group = quantized.bits, quantized.effective_group
        spec = replace(spec, weight_bits=bits, weight_group=group, int16_words=words)
    spec = spec.with_tile(emitter.tiles(spec.key))
    constants = _arguments(emitter, operation, numbers, spec, fold=_OFFSETS.get(spec.row.activation))
    x = emitter.read(operation.inputs[0], operation.activations, layout)
    rows = shape.batch * shape.height * shape.width
    if layout == "plain" and len(operation.inputs[0].shape) != 2:
        x = emitter.builder.emit(relax.op.reshape(x, (rows, shape.in_channels)), f"{operation.name}_rows")
    dims = (shape.rows, shape.out_channels)
    if addition is not None and spec.adding().adds:
        return _emit_with_sum(emitter, operation, addition, spec.adding(), [x, *constants])
    y = emitter.kernel(spec.define(), spec.name, [x, *constants], dims, spec.out.dtype, operation.name)
    if layout == "plain" and len(operation.output.shape) != 2:
        y = emitter.builder.emit(relax.op.reshape(y, operation.output.shape), operation.name)
    return y


def _emit_with_sum(
    emitter: Emitter, operation: Operation, addition: Operation, spec: KernelSpec, arguments: list[Any]
) -> relax.Var:
    other = next(tensor for tensor in addition.inputs if tensor is not operation.output)
    arguments += [
        emitter.read(other, "uint8", "pixels"),
        *addition_arguments(operation.output, other, addition.output),
    ]
    dims = (spec.shape.rows, spec.shape.out_channels)
    y = emitter.kernel(spec.define(), spec.name, arguments, dims, "uint8", operation.name)
    addition.output.forms["uint8", "pixels"] = y
    return y


def lower_depthwise(emitter: Emitter, operation: Operation, instruction: str) -> relax.Var:
    """A ``conv2d`` with one input channel a group: pixels in, pixels out."""
    body = read_body(operation.function)
    assert body.weight is not None
    shape = convolution_shape(body, operation.inputs[0].shape)
    return _lower_depthwise(emitter, operation, body, shape, instruction)


def _lower_depthwise(
    emitter: Emitter, operation: Operation, body: OperatorBody, shape: ConvolutionShape, instruction: str
) -> relax.Var:
    assert body.weight is not None
    spec = KernelSpec(
        "depthwise",
        shape,
        operation.activations,
        _output(operation, body),
        instruction,
        weight_dtype=_weight_dtype(operation),
    )
    numbers = _numbers(operation, body, body.weight)
    constants = _arguments(emitter, operation, numbers, spec, fold=OFFSET if spec.dot_taps else 0)
    x = emitter.read(operation.inputs[0], operation.activations, "pixels")
    dims = (shape.rows, shape.out_channels)
    return emitter.kernel(spec.define(), spec.name, [x, *constants], dims, spec.out.dtype, operation.name)


def _output(operation: Operation, body: OperatorBody) -> Output:
    if operation.stored == "uint8":
        return Output("uint8")
    return Output("float32", body.low, body.high)


@dataclass(frozen=True)
class _Numbers:
    """What an operator computes with: weight [O, …] and bias [O] in float, or int8 and int32.

    Weight-only operators have int8, what they stand for and its scale float32 [O] as a multiplier. Integer ones have
    the zero-points of input and output as well. Half floats are as :mod:`~tvm_mpq.quantization.half` has them.
    """

    weight: Array
    bias: Array
    quantized: QuantizedWeights | None = None
    multiplier: Array | None = None
    zero_points: tuple[int, int] | None = None


def _arguments(
    emitter: Emitter, operation: Operation, numbers: _Numbers, spec: KernelSpec, fold: int | None
) -> list[relax.Expr | Array]:
    """Weight, bias, and for codes multiplier, for integers grid, as the kernel takes them.

    ``fold``: the kernel multiplies q_x − fold, so −(z_x − fold) Σ q_w goes into the bias; None: it takes off z_x.
    """
    if spec.family == "weight_only":
        assert numbers.quantized is not None
        return [*packed_constants(numbers.quantized, numbers.bias, spec)]
    layout = weight_layout(spec)
    weights: list[relax.Expr | Array] = [layout.pack(numbers.weight)]
    if numbers.quantized is not None and numbers.quantized.bits < 8 and not operation.any_codes:
        weights = _stored(emitter, operation.name, numbers.quantized, layout)
    scales = [] if numbers.multiplier is None else [layout.pack_each(numbers.multiplier)]
    if numbers.zero_points is None:
        return [*weights, layout.pack_each(numbers.bias), *scales]
    bias = numbers.bias
    if fold is not None:
        bias = fold_zero_point(bias, numbers.weight, numbers.zero_points[0] - (spec.input_offset or fold))
    return [*weights, layout.pack_each(bias), *scales, np.array(numbers.zero_points, np.int32)]


def _stored(
    emitter: Emitter, name: str, quantized: QuantizedWeights, layout: WeightLayout
) -> list[relax.Expr | Array]:
    """Weights, and the multipliers of their groups where the kernel wants them, expanded from a stream of bits."""
    stream, expansion = store(quantized, layout.extents[0], layout.cut)
    bits = relax.const(stream)
    form: ExpandForm = "nibbles" if layout.nibbles else "multiplied" if quantized.effective_group else "codes"
    weights = [emitter.expand(bits, expansion, form, layout.extents, layout.shape, f"{name}_weights")]
    if layout.multipliers is not None:
        group_count, blocks, count, lanes = layout.multipliers
        rows = layout.cut[0]
        extents = (group_count, blocks, rows, count // rows, lanes)
        shape, title = layout.multipliers, f"{name}_multipliers"
        weights.append(emitter.expand(bits, expansion, "multipliers", extents, shape, title))
    return weights


def _weight_dtype(operation: Operation) -> str:
    return "int8" if operation.executed.weight_only else operation.executed.floating or "float32"


def _numbers(operation: Operation, body: OperatorBody, weight: Array) -> _Numbers:
    bias = np.zeros(len(weight), np.float32) if body.bias is None else body.bias.astype(np.float32)
    if operation.executed.weight_only:
        chosen = weight_only_codes(operation, weight.astype(np.float32))
        return _Numbers(chosen.int8, bias, chosen, chosen.scale)
    if operation.executed.floating in ("float16", "bfloat16"):
        return _Numbers(to_half(weight.astype(np.float32), operation.executed.floating), bias)
    if operation.activations == "float32":
        return _Numbers(weight, bias)
    grid = operation.inputs[0].grid
    assert grid is not None
    quantized = _quantized(operation, weight.astype(np.float32), bias, grid.scale)
    codes, scale = quantized.int8, quantized.scale
    integer_bias = quantize_bias(bias, grid.scale, scale)
    out_scale, out_zero = 1.0, 0
    if operation.stored == "uint8":
        assert operation.output.grid is not None
        out_scale, out_zero = operation.output.grid.scale, operation.output.grid.zero_point
    multiplier = requantize_multiplier(grid.scale, scale, out_scale)
    if operation.stored == "uint8":
        # An accumulator far outside the calibrated range must saturate, not leave int32 on the way.
        largest = 255.0 * np.abs(codes.reshape(len(codes), -1).astype(np.float64)).sum(axis=1)
        largest += np.abs(integer_bias.astype(np.float64)) + 1.0
        multiplier = np.minimum(multiplier, (2.0**31 - 256.0) / largest).astype(np.float32)
    return _Numbers(codes, integer_bias, quantized, multiplier, (grid.zero_point, out_zero))


def _quantized(operation: Operation, weight: Array, bias: Array, in_scale: float) -> QuantizedWeights:
    """The operator's integer weights: those given, or rounded to nearest; with scales that fit the accumulator."""
    executed = operation.executed
    paired = operation.kind != "depthwise_conv2d"  # its kernels sum no pairs
    if operation.weights is None:
        title = f"the weights of operator {operation.name}"
        chosen = round_to_nearest(weight, executed.weight_bits, executed.group, title, paired)
    else:
        chosen = operation.weights
        check_shape(chosen, weight, f"operator {operation.name}")
    return fit_accumulator(chosen, weight, bias, in_scale, paired)
