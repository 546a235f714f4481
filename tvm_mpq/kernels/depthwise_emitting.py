"""What depthwise convolutions of 8-bit tensors that are written out have in common."""

from __future__ import annotations

from collections.abc import Iterator

from tvm.tirx import Buffer

from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.emitting import argument


def arguments(shape: ConvolutionShape, out: Output) -> tuple[Buffer, Buffer, Buffer, Buffer, Buffer, Buffer]:
    """The parameters of ``depthwise``, in its order: x, weight, bias, multiplier, grid, out."""
    channels = shape.out_channels
    return (
        argument("x", (shape.batch * shape.height * shape.width, channels), "uint8"),
        argument("weight", (*shape.kernel, channels), "int8"),
        argument("bias", (channels,), "int32"),
        argument("multiplier", (channels,), "float32"),
        argument("grid", (2,), "int32"),
        argument("out", (shape.rows, channels), out.dtype),
    )


def windows(w: int, columns: int, shape: ConvolutionShape) -> Iterator[tuple[int, int]]:
    """The output columns of a tile whose windows hold its input column ``w``, and the tap that it meets there."""
    for column in range(columns):
        tap = w - column * shape.stride[1]
        if 0 <= tap < shape.kernel[1]:
            yield column, tap
