"""From planes of floats to 8-bit pixels of few channels, written out: as images reach a network.

Codes of 16 columns are made plane by plane, whole vectors, and put between each other in registers. The schedule of
:func:`tvm_mpq.kernels.elementwise.quantize_to_pixels`, which computes the same, stores them byte by byte.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import PrimFunc

from tvm_mpq.kernels.elementwise import Shape
from tvm_mpq.kernels.emitting import argument, program, store
from tvm_mpq.kernels.requantize import quantize, quantize_vector

MOST_CHANNELS = 4
_COLUMNS = 16


def quantize_planes(shape: Shape) -> PrimFunc:
    """float32 [N, C, H, W] of 2 to 4 channels → uint8 [N·H·W, C]: x, inverse scale float32[1], grid int32[2], out."""
    n, channels, height, width = shape
    with program() as builder:
        x = argument("x", shape, "float32")
        inverse = argument("inverse", (1,), "float32")
        grid = argument("grid", (2,), "int32")
        out = argument("out", (n * height * width, channels), "uint8")
        pixels = T.decl_buffer((n * height * width * channels,), "uint8", data=out.data)
        lanes = [tirx.const(_COLUMNS * c + i, "int32") for i in range(_COLUMNS) for c in range(channels)]
        with T.sblock("root"), T.parallel(0, n * height) as line:
            image, row = T.bind(line // height), T.bind(line % height)
            whole = width // _COLUMNS
            with T.serial(0, whole) as group:
                first = T.bind(group * _COLUMNS)
                columns = T.ramp(first, 1, _COLUMNS)
                codes = [
                    quantize_vector(x[image, c, row, columns], inverse[0], grid[1], _COLUMNS)
                    for c in range(channels)
                ]
                at = T.ramp((line * width + first) * channels, 1, _COLUMNS * channels)
                store(pixels, [at], tirx.Shuffle(codes, lanes))
            if width % _COLUMNS:
                with T.serial(whole * _COLUMNS, width) as column:
                    for c in range(channels):
                        code = quantize(x[image, c, row, column], inverse[0], grid[1])
                        store(out, [line * width + column, c], code)
    return builder.get()
