"""Lower functions of each element of one tensor: a table of 256 codes in 8 bits, one fused kernel in float."""

from __future__ import annotations

from tvm import relax

from tvm_mpq.kernels import pointwise
from tvm_mpq.quantization.table import code_table
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import read_pointwise
from tvm_mpq.transform.tensors import Emitter


def lower_pointwise(emitter: Emitter, operation: Operation) -> relax.Var:
    """f(x) in whichever layout x is held."""
    layout = operation.output.native
    function = read_pointwise(operation.function)
    shape = operation.output.form_shape(layout)
    x = emitter.read(operation.inputs[0], operation.activations, layout)
    if operation.activations == "float32":
        kernel = pointwise.pointwise(shape, function)
        return emitter.kernel(kernel, "pointwise_fp32", [x], shape, "float32", operation.name)
    source, out = operation.inputs[0].grid, operation.output.grid
    assert source is not None
    assert out is not None
    table = code_table(function.evaluate, source, out)
    return emitter.kernel(
        pointwise.table_lookup(shape), "pointwise_w8a8", [x, table], shape, "uint8", operation.name
    )
