"""Lower transposed convolutions: one ordinary convolution of all phases, and a move that interleaves them."""

from __future__ import annotations

from dataclasses import replace

from tvm import relax

from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.interleave import Interleave, interleave
from tvm_mpq.quantization.phases import phase_values, phase_weights
from tvm_mpq.transform.lower_weighted import emit_convolution
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.tensors import Emitter


def lower_transposed(emitter: Emitter, operation: Operation, instruction: str) -> relax.Var:
    """``conv2d_transpose``: pixels in, pixels out. With stride 1 there is nothing to interleave."""
    body = read_body(operation.function)
    assert body.weight is not None
    n, c, h, w = operation.inputs[0].shape
    _, _, out_height, out_width = operation.output.shape
    groups = int(body.attributes.groups)
    sh, sw = (int(step) for step in body.attributes.strides)
    top, left, _, _ = (int(pad) for pad in body.attributes.padding)
    weight = phase_weights(body.weight, groups, (sh, sw))
    outputs, _, rows, columns = weight.shape
    # Rows of phases from the first to the last that hold a row of the output.
    first = top // sh, left // sw
    height, width = (out_height - 1 + top) // sh + 1 - first[0], (out_width - 1 + left) // sw + 1 - first[1]
    shape = ConvolutionShape(
        batch=n,
        height=h,
        width=w,
        in_channels=c,
        out_channels=outputs,
        kernel=(rows, columns),
        padding=(
            rows - 1 - first[0],
            columns - 1 - first[1],
            height + first[0] - h,
            width + first[1] - w,
        ),
        groups=groups,
    )
    bias = None if body.bias is None else phase_values(body.bias, groups, (sh, sw))
    y = emit_convolution(emitter, operation, replace(body, weight=weight, bias=bias), shape, instruction)
    if (sh, sw) == (1, 1):
        return y
    dtype = str(y.ty.dtype)
    places = Interleave(
        n, height, width, out_height, out_width, outputs, groups, (sh, sw), (top % sh, left % sw)
    )
    dims = operation.output.pixel_shape
    return emitter.kernel(interleave(places, dtype), "interleave", [y], dims, dtype, operation.name)
