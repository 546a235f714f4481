"""Lower the comparison of a tensor with another (``kernels.inner_products``), in whichever layout they are held."""

from __future__ import annotations

import math

from tvm import relax

from tvm_mpq.kernels.inner_products import partial_products, sum_partials
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.tensors import Emitter


def lower_inner_products(emitter: Emitter, operation: Operation) -> relax.Var:
    """a, b, g → [n, 2]: for each sample Σ (a − b)·g and Σ (a − b)²."""
    first = operation.inputs[0]
    size = math.prod(first.shape)
    arguments = [
        emitter.builder.emit(relax.op.reshape(emitter.read(tensor, "float32", first.native), (size,)))
        for tensor in operation.inputs
    ]
    batch = first.shape[0]
    kernel, shape = partial_products(batch, size // batch)
    partial = emitter.kernel(kernel, "partial_products", arguments, shape, "float32", operation.name)
    return emitter.kernel(
        sum_partials(shape), "sum_partials", [partial], (batch, 2), "float32", operation.name
    )
