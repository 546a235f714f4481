"""Depthwise convolution: every output channel reads one input channel.

NHWC as [pixels, channels]. The input is padded into a stage of its own dtype (uint8 is padded with its zero-point and
multiplied as it is: the constant that the zero-point adds is folded into the bias), then

    acc[n, h, w, k] = Σ_{r,s} stage[n, h·stride + r·dilation, w·stride + s·dilation, k // multiplier] · weight[r, s, k]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import IRModule, te, tirx
from tvm.s_tir import Schedule
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.convolution import ConvolutionShape, Output, activate, padded_input
from tvm_mpq.kernels.divisors import divisors
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.narrow_weights import stored_dtype, widened
from tvm_mpq.kernels.requantize import requantize
from tvm_mpq.kernels.starting_value import start_with
from tvm_mpq.kernels.tiles import shared_evenly

_STAGE_BYTES = {"float32": 48 * 1024, "uint8": 160 * 1024}
"""Cache for a task's padded input. A row of few 8-bit channels is copied slowly, so that they take more of it."""


@dataclass(frozen=True)
class DepthwiseTile:
    """``columns`` results × ``vector`` channels are kept in registers.

    A parallel task makes ``rows`` output rows of ``channels`` channels from an input block that it pads in the cache.
    """

    columns: int
    vector: int
    rows: int
    channels: int


def depthwise(
    shape: ConvolutionShape, in_dtype: str, out: Output, float_weight: str = "float32", neon: bool = False
) -> PrimFunc:
    """The definition with blocks ``padded``, ``acc`` and ``out``.

    Parameters: x [N·H·W, C]; weight [R, S, K] int8, or for floats what ``float_weight`` names (see
    ``narrow_weights``); bias [K]; for int8 weights multiplier [K] float32, and for integer inputs grid int32[2] (input
    and output zero-point); then the output [rows, K]. ``neon``: for 64-bit ARM.
    """
    integer = in_dtype == "uint8"
    accumulator = "int32" if integer else "float32"
    x = te.placeholder((shape.batch * shape.height * shape.width, shape.in_channels), in_dtype, "x")
    channels = shape.out_channels
    weight = te.placeholder(
        (*shape.kernel, channels), "int8" if integer else stored_dtype(float_weight), "weight"
    )
    bias = te.placeholder((channels,), accumulator, "bias")
    multiplier = te.placeholder((channels,), "float32", "multiplier")
    grid = te.placeholder((2,), "int32", "grid")
    fill = grid[0].astype(in_dtype) if integer else tirx.const(0, in_dtype)
    stage = padded_input(x, shape, fill)

    r = te.reduce_axis((0, shape.kernel[0]), "r")
    s = te.reduce_axis((0, shape.kernel[1]), "s")
    expansion = channels // shape.in_channels
    dims = (shape.batch, shape.out_height, shape.out_width, channels)

    # As in ``convolution``.
    starts_with_bias = integer and neon

    def product(n: Expr, h: Expr, w: Expr, k: Expr) -> Expr:
        value = stage[
            n,
            h * shape.stride[0] + r * shape.dilation[0],
            w * shape.stride[1] + s * shape.dilation[1],
            k if expansion == 1 else k // expansion,
        ]
        tap = weight[r, s, k]
        tap = tap.astype("int32") if integer else widened(tap, float_weight)
        return te.sum(value.astype(accumulator) * tap, axis=[r, s])

    acc = te.compute(dims, product, "acc")

    def finish(n: Expr, h: Expr, w: Expr, k: Expr) -> Expr:
        if not integer:
            scaled = acc[n, h, w, k] * multiplier[k] if float_weight == "int8" else acc[n, h, w, k]
            return activate(scaled + bias[k], out)
        value = acc[n, h, w, k] if starts_with_bias else acc[n, h, w, k] + bias[k]
        if out.dtype == "uint8":
            return requantize(value, multiplier[k], grid[1], "neon" if neon else None)
        return activate(value.astype("float32") * multiplier[k], out)

    finished = te.compute(dims, finish, "finished")
    result = pixels(finished, "out")
    scales = [multiplier, grid] if integer else [multiplier] if float_weight == "int8" else []
    function = te.create_prim_func([x, weight, bias, *scales, result])
    return start_with(function, "acc", "bias", lambda v: (v[3],)) if starts_with_bias else function


def pixels(tensor: te.Tensor, name: str) -> te.Tensor:
    """[N, H, W, C] → [N·H·W, C]."""
    n, h, w, c = (int(extent) for extent in tensor.shape)
    return te.compute((n * h * w, c), lambda m, k: tensor[m // (h * w), m // w % h, m % w, k], name)


def default_depthwise_tile(
    shape: ConvolutionShape, lanes: int, in_dtype: str, threads: int = 2
) -> DepthwiseTile:
    """About eight registers of results, and tasks whose padded input stays in the cache.

    Floats and strided windows gain from two vectors a column (fewer address steps a load); 8-bit taps are widened by
    the load, so that there one vector and more columns, which share taps, do better.
    """
    width = shape.out_width
    wide = vector_width(shape.out_channels, 2 * lanes)
    pairs = [c for c in (4, 2) if width % c == 0]
    if wide == 2 * lanes and pairs and (in_dtype == "float32" or shape.stride[1] > 1):
        columns, vector = pairs[0], wide
    else:
        vector = vector_width(shape.out_channels, lanes)
        columns = max(c for c in range(1, 9) if width % c == 0)
    rows = task_rows(shape)
    line = channel_bytes(shape, rows, in_dtype)
    blocks = shape.out_channels // vector
    fitting = [d for d in divisors(blocks) if d * vector * line <= _STAGE_BYTES[in_dtype]]
    row_tasks = shape.batch * shape.out_height // rows
    # Blocks of all row tasks laid end to end: a task takes ``size`` of one row task's.
    size = min(fitting or [1], key=lambda d: (-(-row_tasks * (blocks // d) // threads) * d, -d))
    return DepthwiseTile(columns, vector, rows, vector * size)


def channel_bytes(shape: ConvolutionShape, rows: int, in_dtype: str) -> int:
    """Bytes of one channel of a task's padded input."""
    staged_rows = (rows - 1) * shape.stride[0] + shape.dilation[0] * (shape.kernel[0] - 1) + 1
    item = 4 if in_dtype == "float32" else 1
    return staged_rows * (shape.width + shape.padding[1] + shape.padding[3]) * item


def depthwise_tiles(shape: ConvolutionShape, row: Intrinsic, in_dtype: str) -> list[DepthwiseTile]:
    """Every tile of the template worth trying: its results fit the registers, its tasks the cache and two threads.

    ``row`` is the instruction set's row for floats.
    """
    return shared_evenly(_depthwise_tiles(shape, row, in_dtype))


def _depthwise_tiles(
    shape: ConvolutionShape, row: Intrinsic, in_dtype: str
) -> Iterator[tuple[int, DepthwiseTile]]:
    """Each tile with the number of its tasks."""
    channels, lanes = shape.out_channels, row.lanes
    vectors = [v for v in (lanes // 2, lanes, 2 * lanes, 4 * lanes) if v >= 4 and channels % v == 0]
    for vector in vectors or [vector_width(channels, lanes)]:
        for columns in divisors(shape.out_width):
            if columns * -(-vector // lanes) > row.registers - 2:
                continue
            for rows in divisors(shape.out_height):
                line = channel_bytes(shape, rows, in_dtype)
                row_tasks = shape.batch * shape.out_height // rows
                for size in divisors(channels // vector):
                    if size == 1 or size * vector * line <= _MOST_STAGE_BYTES:
                        tasks = row_tasks * (channels // vector // size)
                        yield tasks, DepthwiseTile(columns, vector, rows, vector * size)


_MOST_STAGE_BYTES = 2**19


def vector_width(channels: int, lanes: int) -> int:
    """The widest vector of whole registers that divides ``channels``, at most ``lanes``; else any divisor up to 32."""
    whole = [w for w in (lanes, lanes // 2) if w >= 4 and channels % w == 0]
    return whole[0] if whole else max(w for w in range(1, 33) if channels % w == 0)


def task_rows(shape: ConvolutionShape, threads: int = 2) -> int:
    """Output rows of a parallel task: divides the height, several tasks a thread, at least as tall as the kernel."""
    height = shape.out_height
    wanted = max(shape.kernel[0], height // (4 * threads))
    return max((d for d in divisors(height) if d <= wanted), default=1)


def schedule_depthwise(
    definition: PrimFunc, shape: ConvolutionShape, tile: DepthwiseTile, tap: str | None = None
) -> PrimFunc:
    """Apply the template: parallel over row blocks; channel blocks; rows; column tiles in registers, taps unrolled.

    ``tap`` is the intrinsic that adds one tap of the vector's channels, where plain vector code is not as good.
    """
    sch = Schedule(IRModule({"main": definition}))
    sch.reverse_compute_inline("out")
    finished, acc, stage = (sch.get_sblock(name) for name in ("finished", "acc", "padded"))
    n, h, w, k = sch.get_loops(finished)
    task, row = sch.split(h, [None, tile.rows])
    column, ci = sch.split(w, [None, tile.columns])
    chunk, block, lane = sch.split(k, [None, tile.channels // tile.vector, tile.vector])
    sch.reorder(n, task, chunk, block, row, column, ci, lane)
    tasks = sch.fuse(n, task, chunk)
    sch.parallel(tasks)
    sch.unroll(ci)
    sch.vectorize(lane)
    sch.compute_at(acc, column, preserve_unit_loops=True)
    if any(shape.padding):
        sch.compute_at(stage, tasks, preserve_unit_loops=True)
        channel = sch.get_loops(stage)[-1]
        extent = int(sch.get(channel).extent)
        sch.vectorize(sch.split(channel, [None, vector_width(extent, 32)])[1])
    else:
        sch.compute_inline(stage)
    n_, h_, ci, lane, r, s = sch.get_loops(acc)[-6:]
    sch.reorder(r, s, n_, h_, ci, lane)
    if tap is None:
        sch.vectorize(lane)
    for loop in (r, s, ci):
        sch.unroll(loop)
    init = sch.decompose_reduction(acc, r)
    if tap is not None:
        sch.vectorize(sch.get_loops(init)[-1])
        sch.tensorize(lane, tap)
    return sch.mod["main"]
