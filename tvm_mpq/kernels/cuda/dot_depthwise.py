"""Depthwise convolution of 8-bit tensors by dp4a, as one program.

A thread makes four channels of a pixel. A word of the input is one pixel of four channels; four words of a kernel row
are transposed to four taps of each channel, which dp4a multiplies at once. Taps past the kernel row have codes of zero.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.convolution import ConvolutionShape, Output, activate
from tvm_mpq.kernels.cuda.block_program import all_of
from tvm_mpq.kernels.cuda.schedule_threads import THREADS
from tvm_mpq.kernels.cuda.words import dot, flipped, transposed
from tvm_mpq.kernels.emitting import When, argument, program
from tvm_mpq.kernels.requantize import requantize

TAPS = 4
"""Products of one dp4a, and channels of a thread."""


def dot_depthwise_fits(shape: ConvolutionShape, in_dtype: str) -> bool:
    """Whether a thread's four channels are neighbours in the input, and make one word."""
    return in_dtype == "uint8" and shape.in_channels == shape.out_channels and shape.in_channels % TAPS == 0


def dot_depthwise(shape: ConvolutionShape, out: Output) -> PrimFunc:
    """The kernel.

    Parameters: x [N·H·W, C] uint8; weight int8 [1, 1, R · ⌈S / 4⌉, 1, C, 4]; bias int32 [C], which makes up for
    activations less 128; multiplier float32 [C]; grid int32 [2] (input and output zero-point); then the output
    [rows, C].
    """
    channels, rows = shape.out_channels, shape.rows
    steps = -(-shape.kernel[1] // TAPS)
    quads = channels // TAPS
    with program() as builder:
        x = argument("x", (shape.batch * shape.height * shape.width, channels), "uint8")
        weight = argument("weight", (1, 1, shape.kernel[0] * steps, 1, channels, TAPS), "int8")
        bias = argument("bias", (channels,), "int32")
        multiplier = argument("multiplier", (channels,), "float32")
        grid = argument("grid", (2,), "int32")
        result = argument("out", (rows, channels), out.dtype)
        with T.sblock("root"):
            T.reads()
            T.writes()
            block = T.launch_thread("blockIdx.x", -(-rows * quads // THREADS))
            thread = T.launch_thread("threadIdx.x", THREADS)
            with block as b, thread as t:
                index = T.bind(b * THREADS + t)
                with When([] if rows * quads % THREADS == 0 else [index < rows * quads]):
                    m, channel = T.bind(index // quads), T.bind(index % quads * TAPS)
                    acc = T.alloc_buffer((TAPS,), "int32", scope="local", layout=None)
                    for lane in range(TAPS):
                        T.buffer_store(acc, T.int32(0), [lane])
                    fill = T.bind(T.cast(grid[0], "uint32") * T.uint32(0x01010101))
                    for r in range(shape.kernel[0]):
                        for step in range(steps):
                            taps = [
                                _word(x, shape, m, channel, r, step * TAPS + s, fill) for s in range(TAPS)
                            ]
                            for lane, word in enumerate(transposed(taps)):
                                codes = weight[0, 0, r * steps + step, 0, channel + lane, T.ramp(0, 1, TAPS)]
                                value = dot(flipped(word), T.reinterpret(codes, dtype="int32"), acc[lane])
                                T.buffer_store(acc, value, [lane])
                    with T.vectorized(0, TAPS) as lane:
                        value = acc[lane] + bias[channel + lane]
                        if out.dtype == "uint8":
                            finished = requantize(value, multiplier[channel + lane], grid[1])
                        else:
                            finished = activate(T.cast(value, "float32") * multiplier[channel + lane], out)
                        T.buffer_store(result, finished, [m, channel + lane])
    return builder.get()


def _word(x: T.Buffer, shape: ConvolutionShape, m: Expr, channel: Expr, r: int, s: int, fill: Expr) -> Expr:
    """The four channels of tap (r, s) of row ``m``'s window; ``fill`` in the padding, anything past the kernel."""
    if s >= shape.kernel[1]:
        return T.uint32(0)
    oh, ow = shape.out_height, shape.out_width
    h = m // ow % oh * shape.stride[0] + (r * shape.dilation[0] - shape.padding[0])
    w = m % ow * shape.stride[1] + (s * shape.dilation[1] - shape.padding[1])
    pixel = (m // (oh * ow) * shape.height + h) * shape.width + w
    value = T.reinterpret(x[pixel, T.ramp(channel, 1, TAPS)], dtype="uint32")
    conditions = []
    if any(shape.padding):
        conditions = [h >= 0, h < shape.height, w >= 0, w < shape.width]
    return T.bind(T.if_then_else(all_of(tuple(conditions)), value, fill) if conditions else value)
