"""Convolution and matrix multiplication as one definition: stage patches, multiply by packed weights, finish.

NHWC. Rows m run over batch, output rows and output columns; the reduction k over kernel rows, kernel columns and the
input channels of a group; a kernel row's elements are padded to a multiple of the intrinsic's group.

    padded[n, h, w·C + c] = x in the intrinsic's dtype, less its zero-point when integer; 0 in the padding
    stage[g, m, k]     = padded at the input pixel of (m, k); anything where the reduction is padded, as its weight is 0
    acc[g, m, n, l]    = Σ_k stage[g, m, k] · weight[g, n, k/G, k mod G / P, l, k mod P] (· factor[g, n, group of k, l])
    out[m, channel]    = acc + bias, requantized, or rescaled to float, or activated

Where the intrinsic reads bytes the zero-point is not subtracted: it is what padding is filled with, and the constant
that it adds is folded into the bias (see ``quantization``); signed bytes are the input less 128. A matrix
multiplication is a 1×1 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels import neon
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.narrow_weights import stored_dtype, to_bfloat16, widened
from tvm_mpq.kernels.requantize import Unit, requantize
from tvm_mpq.kernels.starting_value import start_with
from tvm_mpq.kernels.tensor_intrinsics import nibble


@dataclass(frozen=True)
class ConvolutionShape:
    """The extents of a convolution. ``padding`` is top, left, bottom, right; channels count all groups."""

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[2] - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[1] + self.padding[3] - reach) // self.stride[1] + 1

    @property
    def rows(self) -> int:
        """Rows of the matrix multiplication: batch × output pixels."""
        return self.batch * self.out_height * self.out_width

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        return self.rows * self.out_channels * math.prod(self.kernel) * self.in_channels // self.groups

    @property
    def run(self) -> int:
        """Elements of the reduction in a kernel row."""
        return self.kernel[1] * self.in_channels // self.groups

    def reduction(self, group: int) -> int:
        """Length of the reduction: kernel rows × elements of one, padded to a multiple of ``group``."""
        return self.kernel[0] * _round_up(self.run, group)

    def is_plain_matrix(self) -> bool:
        """Whether rows of the matrix are rows of the input: 1×1, stride 1, no padding, one group."""
        return self.is_pointwise() and self.stride == (1, 1) and self.groups == 1

    def is_pointwise(self) -> bool:
        """Whether a row's patch is one pixel of the input: 1×1, no padding."""
        return self.kernel == (1, 1) and not any(self.padding)


@dataclass(frozen=True)
class Output:
    """What leaves the kernel: ``uint8`` (requantized) or ``float32``; activation bounds for a float network's clip."""

    dtype: str
    low: float = -math.inf
    high: float = math.inf


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def packed_weight_shape(shape: ConvolutionShape, intrinsic: Intrinsic) -> tuple[int, int, int, int, int, int]:
    """[groups, channel blocks, reduction / G, words, lanes, G / words] of the packed weights; two words a byte."""
    blocks = -(-(shape.out_channels // shape.groups) // intrinsic.lanes)
    steps = shape.reduction(intrinsic.group) // intrinsic.group
    words = intrinsic.words // 2 if intrinsic.nibbles else intrinsic.words
    return (shape.groups, blocks, steps, words, intrinsic.lanes, intrinsic.per_word)


def packed_factor_shape(
    shape: ConvolutionShape, intrinsic: Intrinsic, weight_group: int
) -> tuple[int, int, int, int]:
    """[groups, channel blocks, groups of weights, lanes]; groups of ``weight_group`` restart at each kernel row."""
    groups, blocks = packed_weight_shape(shape, intrinsic)[:2]
    return (groups, blocks, shape.kernel[0] * -(-shape.run // weight_group), intrinsic.lanes)


def convolution(
    shape: ConvolutionShape,
    in_dtype: str,
    out: Output,
    intrinsic: Intrinsic,
    row_tile: int = 1,
    weight_group: int = 0,
    adds: bool = False,
    by_kernel_row: bool = False,
) -> PrimFunc:
    """The definition as a PrimFunc with blocks ``padded``, ``stage``, ``acc``, ``finished`` and ``out``, unscheduled.

    Parameters, in order: x [N·H·W, C] of ``in_dtype``; packed weights; factors int8 where the intrinsic multiplies
    each ``weight_group`` of the reduction by one; bias [groups, blocks, lanes] of the accumulator's dtype; for int8
    weights multiplier [groups, blocks, lanes] float32, and for integer inputs grid int32[2] (input and output
    zero-point); then the output [rows, out_channels]. ``row_tile``: rows are padded to a multiple of it inside.
    ``adds``: another 8-bit tensor is added to the requantized result, whose parameters are those of
    ``elementwise.add``: it, of the output's shape, factors int32[3], multiplier float32[1], grid int32[2]. One group,
    and channels that fill whole vectors. ``by_kernel_row``: the kernel rows of the reduction are an axis of their own,
    so that a patch can be read where it lies (see :func:`rows_in_place`): k then runs over one of them.
    """
    integer = in_dtype == "uint8"
    x = te.placeholder((shape.batch * shape.height * shape.width, shape.in_channels), in_dtype, "x")
    weight_shape = packed_weight_shape(shape, intrinsic)
    groups, blocks, steps, _, lanes, per_word = weight_shape
    group = intrinsic.group
    weight = te.placeholder(weight_shape, stored_dtype(intrinsic.weight), "weight")
    channel_shape = (groups, blocks, lanes)
    bias = te.placeholder(channel_shape, intrinsic.accumulator, "bias")
    multiplier = te.placeholder(channel_shape, "float32", "multiplier")
    grid = te.placeholder((2,), "int32", "grid")

    rows = _round_up(shape.rows, row_tile)
    stage = _stage(x, grid if integer else None, shape, intrinsic, rows, by_kernel_row)
    row_steps = steps // shape.kernel[0]
    r = te.reduce_axis((0, shape.kernel[0]), "r")
    k = te.reduce_axis((0, row_steps if by_kernel_row else steps), "k")
    step = r * row_steps + k if by_kernel_row else k
    inner = te.reduce_axis((0, group), "inner")

    factor = None
    if intrinsic.multiplied:
        factor = te.placeholder(packed_factor_shape(shape, intrinsic, weight_group), "int8", "factor")

    def code(g: Expr, n: Expr, lane: Expr) -> Expr:
        if intrinsic.nibbles:
            return nibble(
                weight[g, n, step, inner // (2 * per_word), lane, inner % per_word], inner // per_word
            )
        word = inner // per_word if intrinsic.words > 1 else 0
        within = inner % per_word if intrinsic.words > 1 else inner
        value = weight[g, n, step, word, lane, within]
        return value.astype("int32") if integer else widened(value, intrinsic.weight)

    unit: Unit | None = "neon" if intrinsic.family in neon.ARM64 else "avx2" if intrinsic.is_avx2 else None
    # A register costs as much to copy as to clear. Not where LLVM may reorder products that are added in int16 first:
    # it then makes one chain after the other, in 30 cycles instead of 24. Sums of floats would be rounded in another
    # order.
    starts_with_bias = intrinsic.family in neon.DOTS or intrinsic.from_memory

    def product(g: Expr, m: Expr, n: Expr, lane: Expr) -> Expr:
        staged = stage[(g, m, r, k * group + inner) if by_kernel_row else (g, m, k * group + inner)]
        staged = staged.astype("int32") if integer else widened(staged, intrinsic.activation)
        value = staged * code(g, n, lane)
        if factor is not None:
            row_groups = -(-shape.run // weight_group)
            at = step // row_steps * row_groups + step % row_steps * group // weight_group
            value = value * factor[g, n, at, lane].astype("int32")
        return te.sum(value, axis=[r, k, inner] if by_kernel_row else [k, inner])

    acc = te.compute((groups, rows, blocks, lanes), product, "acc")

    def finish(g: Expr, m: Expr, n: Expr, lane: Expr) -> Expr:
        if not integer:
            scaled = acc[g, m, n, lane]
            if intrinsic.weight == "int8":
                scaled = scaled * multiplier[g, n, lane]
            return activate(scaled + bias[g, n, lane], out)
        value = acc[g, m, n, lane] if starts_with_bias else acc[g, m, n, lane] + bias[g, n, lane]
        if out.dtype != "uint8":
            return activate(value.astype("float32") * multiplier[g, n, lane], out)
        # LLVM clips what is added to in 32 bits, without packing it.
        first = None if addition is not None and unit == "avx2" else unit
        code = requantize(value, multiplier[g, n, lane], grid[1], first)
        return addition.element(code, m, n * lanes + lane, unit) if addition is not None else code

    addition = Addition.placeholders(shape.rows, shape.out_channels) if adds else None
    finished = te.compute(acc.shape, finish, "finished")
    channels = shape.out_channels // shape.groups

    def at(m: Expr, c: Expr) -> Expr:
        within = c if groups == 1 else c % channels
        return finished[0 if groups == 1 else c // channels, m, within // lanes, within % lanes]

    result = te.compute((shape.rows, shape.out_channels), at, "out")
    factors = [] if factor is None else [factor]
    scales = [multiplier, grid] if integer else [multiplier] if intrinsic.weight == "int8" else []
    added = [] if addition is None else addition.parameters
    function = te.create_prim_func([x, weight, *factors, bias, *scales, *added, result])
    # The block's variables: g, m, n, lane, then those of the reduction.
    return start_with(function, "acc", "bias", lambda v: (v[0], v[2], v[3])) if starts_with_bias else function


@dataclass(frozen=True)
class Addition:
    """A second tensor and how it is added: a · factors[0] + b · factors[1] + factors[2], requantized.

    Each is a tensor of a definition, or a buffer of a program: other [rows, channels] uint8, factors int32[3],
    multiplier float32[1], grid int32[2].
    """

    other: te.Tensor | Buffer
    factors: te.Tensor | Buffer
    multiplier: te.Tensor | Buffer
    grid: te.Tensor | Buffer

    @classmethod
    def placeholders(cls, rows: int, channels: int) -> Addition:
        """The parameters of a definition."""
        return cls(
            te.placeholder((rows, channels), "uint8", "other"),
            te.placeholder((3,), "int32", "sum_factors"),
            te.placeholder((1,), "float32", "sum_multiplier"),
            te.placeholder((2,), "int32", "sum_grid"),
        )

    @property
    def parameters(self) -> list[te.Tensor | Buffer]:
        """In the order that a kernel takes them."""
        return [self.other, self.factors, self.multiplier, self.grid]

    def element(self, code: Expr, m: Expr, channel: Expr, unit: Unit | None = None) -> Expr:
        """The sum's code where the convolution's is ``code``."""
        total = (
            code.astype("int32") * self.factors[0] + self.other[m, channel].astype("int32") * self.factors[1]
        )
        return requantize(total + self.factors[2], self.multiplier[0], self.grid[1], unit)


def activate(value: Expr, out: Output) -> Expr:
    """Clip a float to the output's activation bounds, each only where it is finite."""
    if not math.isinf(out.high):
        value = te.min(value, tirx.const(out.high, "float32"))
    if not math.isinf(out.low):
        value = te.max(value, tirx.const(out.low, "float32"))
    return value


def rows_in_place(shape: ConvolutionShape, in_dtype: str, intrinsic: Intrinsic) -> int:
    """How many rows follow one another at equal distances, where patches can be read without being staged; else 0.

    A kernel row of a patch must lie in one piece, in the dtype that the step reads: in the input itself, or in the
    padded copy of it.
    """
    if intrinsic.rows > 1 or shape.groups > 1 or shape.dilation[1] > 1:
        return 0
    if shape.is_pointwise() and (intrinsic.activation != in_dtype or shape.in_channels % intrinsic.group):
        return 0
    return shape.rows if shape.is_plain_matrix() else shape.out_width


def _stage(
    x: te.Tensor,
    grid: te.Tensor | None,
    shape: ConvolutionShape,
    intrinsic: Intrinsic,
    rows: int,
    by_kernel_row: bool,
) -> te.Tensor:
    per_group = shape.in_channels // shape.groups
    oh, ow = shape.out_height, shape.out_width
    # Intrinsics of bytes keep the zero-point in the data and pad with it, signed ones less 128; wider ones subtract it.
    offset = neon.OFFSET if intrinsic.activation == "int8" else 0
    subtract = grid is not None and intrinsic.activation not in ("uint8", "int8")
    zero: Expr = tirx.const(0, stored_dtype(intrinsic.activation))
    fill = (grid[0] - offset).astype(intrinsic.activation) if grid is not None and not subtract else zero
    length = shape.reduction(intrinsic.group)
    run = length // shape.kernel[0]
    columns_read = -(-run // per_group)

    def convert(value: Expr) -> Expr:
        if grid is None and intrinsic.activation == "bfloat16":
            return to_bfloat16(value)
        if grid is None and intrinsic.activation == "float16":
            return value.astype("float16")
        if grid is None or not subtract:
            return neon.signed(value) if offset else value
        return value.astype(intrinsic.activation) - grid[0].astype(intrinsic.activation)

    padded = None
    if not shape.is_pointwise():
        extra = (columns_read - shape.kernel[1]) * shape.dilation[1]
        padded = padded_lines(x, shape, fill, convert, extra)

    def place(m: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, row and column of a row's first input, of the padded input where there is one."""
        return m // (oh * ow), m // ow % oh * shape.stride[0], m % ow * shape.stride[1]

    def pixel(m: Expr) -> Expr:
        if shape.stride == (1, 1):
            return m
        n, h, w = place(m)
        return (n * shape.height + h) * shape.width + w

    def element(g: Expr, m: Expr, r: Expr, k: Expr) -> Expr:
        """Number ``k`` of kernel row ``r``."""
        conditions = [] if rows == shape.rows else [m < shape.rows]
        s, c = k // per_group, k % per_group
        if padded is None:
            value = convert(x[pixel(m), k if shape.groups == 1 else g * per_group + c])
            if length != per_group:
                conditions.append(k < per_group)
        else:
            n, h, w = place(m)
            h += r * shape.dilation[0]
            if shape.groups == 1 and shape.dilation[1] == 1:
                value = padded[n, h, w * shape.in_channels + k]
            else:
                channel = c if shape.groups == 1 else g * per_group + c
                value = padded[n, h, (w + s * shape.dilation[1]) * shape.in_channels + channel]
        return te.if_then_else(te.all(*conditions), value, zero) if conditions else value

    if by_kernel_row:
        return te.compute((shape.groups, rows, shape.kernel[0], run), element, "stage")
    return te.compute((shape.groups, rows, length), lambda g, m, k: element(g, m, k // run, k % run), "stage")


def padded_lines(
    x: te.Tensor, shape: ConvolutionShape, fill: Expr, convert: Callable[[Expr], Expr], extra: int
) -> te.Tensor:
    """[N·H·W, C] → ``convert``ed [N, H + padding, (W + padding + ``extra`` on the right)·C], ``fill`` in padding."""
    top, left, bottom, right = shape.padding
    right += extra
    c = shape.in_channels

    def element(n: Expr, h: Expr, e: Expr) -> Expr:
        within = e - left * c
        value = convert(x[(n * shape.height + (h - top)) * shape.width + within // c, within % c])
        conditions = []
        if top or bottom:
            conditions += [h >= top, h < shape.height + top]
        if left or right:
            conditions += [e >= left * c, e < (shape.width + left) * c]
        return te.if_then_else(te.all(*conditions), value, fill) if conditions else value

    dims = (shape.batch, shape.height + top + bottom, (shape.width + left + right) * c)
    return te.compute(dims, element, "padded")


def padded_input(x: te.Tensor, shape: ConvolutionShape, fill: Expr) -> te.Tensor:
    """[N·H·W, C] → [N, H + padding, W + padding, C], ``fill`` in the padding."""
    top, left, bottom, right = shape.padding

    def element(n: Expr, h: Expr, w: Expr, c: Expr) -> Expr:
        value = x[(n * shape.height + (h - top)) * shape.width + (w - left), c]
        conditions = []
        if top or bottom:
            conditions += [h >= top, h < shape.height + top]
        if left or right:
            conditions += [w >= left, w < shape.width + left]
        return te.if_then_else(te.all(*conditions), value, fill) if conditions else value

    dims = (shape.batch, shape.height + top + bottom, shape.width + left + right, shape.in_channels)
    return te.compute(dims, element, "padded")
