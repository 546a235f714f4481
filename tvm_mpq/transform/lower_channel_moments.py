"""Lower sums of values and squares over positions (``kernels.channel_moments``), in the layout at hand."""

from __future__ import annotations

import math

from tvm import relax

from tvm_mpq.kernels.channel_moments import partial_moments, sum_moments
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import read_body
from tvm_mpq.transform.tensors import Emitter, Layout


def lower_channel_moments(emitter: Emitter, operation: Operation) -> relax.Var:
    """x → [n, 2 · channels]: for each sample Σ x and then Σ x² over all axes but the batch and the one of channels.

    The channels are the axis that the body's first call, a sum, keeps: the second, or the last.
    """
    (tensor,) = operation.inputs
    rank = len(tensor.shape)
    summed = {int(axis) for axis in read_body(operation.function).attributes.axis}
    (axis,) = set(range(1, rank)) - summed
    layout: Layout = "pixels" if rank == 4 and axis == 1 else "plain"
    if layout == "plain" and axis != rank - 1:
        raise AssertionError(f"channels of a {rank}-dimensional tensor are its last axis, not {axis}")
    batch, channels = tensor.shape[0], tensor.shape[axis]
    positions = math.prod(tensor.shape) // batch // channels
    rows = relax.op.reshape(emitter.read(tensor, "float32", layout), (batch * positions, channels))
    kernel, shape = partial_moments(batch, positions, channels)
    partial = emitter.kernel(
        kernel, "partial_moments", [emitter.builder.emit(rows)], shape, "float32", operation.name
    )
    return emitter.kernel(
        sum_moments(shape), "sum_moments", [partial], (batch, 2 * channels), "float32", operation.name
    )
