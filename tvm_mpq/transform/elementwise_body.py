"""Operators without a kernel whose bodies are elementwise: one fused kernel in the layout the tensors are held in."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.tirx import PrimFunc

from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import shape_of
from tvm_mpq.transform.substitute import substituted
from tvm_mpq.transform.tensors import Emitter

ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "greater", "greater_equal", "less",
        "less_equal", "equal", "not_equal", "logical_and", "logical_or", "logical_not", "where", "abs", "negative",
        "exp", "log", "sqrt", "rsqrt", "square", "sigmoid", "tanh", "erf", "clip", "astype", "floor", "ceil", "sign",
        "nn.relu", "nn.silu", "nn.gelu",
    )
)  # fmt: skip
"""Relax's operators that compute each element of their result from the same elements of their arguments."""


def is_elementwise_call(value: relax.Expr, shape: tuple[int, ...]) -> bool:
    """Whether ``value`` is elementwise on tensors that all have ``shape``, or on single numbers."""
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") not in ELEMENTWISE:
        return False
    return all(
        _is_number(argument) or (isinstance(argument, relax.Var) and _has_shape(argument, shape))
        for argument in value.args
    )


def is_elementwise(function: relax.Function) -> bool:
    """Whether the body calls something and every call is elementwise on tensors of the result's shape."""
    if not isinstance(function.ret_ty, relax.TensorType) or not all(
        isinstance(p.ty, relax.TensorType) for p in function.params
    ):
        return False
    shape = tuple(int(extent) for extent in function.ret_ty.shape)
    values = [binding.value for block in function.body.blocks for binding in block.bindings]
    return any(isinstance(value, relax.Call) for value in values) and all(
        is_elementwise_call(value, shape) or (isinstance(value, relax.Var) and _has_shape(value, shape))
        for value in values
    )


def lower_elementwise(emitter: Emitter, operation: Operation) -> relax.Var:
    """The body as one kernel on tensors in their native layout."""
    layout = operation.output.native
    shape = operation.output.form_shape(layout)
    arguments: list[relax.Expr] = []
    parameters: list[relax.Var] = []
    values: dict[relax.Expr, relax.Expr] = {}
    for tensor, parameter in zip(operation.inputs, operation.function.params, strict=True):
        dtype = str(parameter.ty.dtype)
        arguments.append(emitter.read(tensor, dtype, layout))
        values[parameter] = relax.Var(parameter.name, relax.TensorType(shape, dtype))
        parameters.append(values[parameter])
    # FuseTIR takes no constants that did not become numbers in the code: they are arguments too.
    for index, constant in enumerate(_tensor_constants(operation.function)):
        parameter = relax.Var(f"c{index}", constant.ty)
        values[constant] = parameter
        arguments.append(constant)
        parameters.append(parameter)
    kernel = _fused(operation.function, parameters, values)
    dtype = str(operation.function.ret_ty.dtype)
    return emitter.kernel(kernel, f"{operation.kind}_elementwise", arguments, shape, dtype, operation.name)


def _fused(
    function: relax.Function, parameters: list[relax.Var], values: dict[relax.Expr, relax.Expr]
) -> PrimFunc:
    """One kernel of ``function``, its parameters and constants replaced by ``values`` of ``parameters``.

    It is fused here, in a module of its own, because FuseTIR names all variables of a module's ``main`` anew, and
    whose they are is known by their names.
    """
    builder = relax.BlockBuilder()
    with builder.function("body", parameters, attrs={"Primitive": True}, private=True):
        with builder.dataflow():
            for block in function.body.blocks:
                for binding in block.bindings:
                    values[binding.var] = builder.emit(substituted(binding.value, values))
            result = builder.emit_output(values[function.body.body])
        builder.emit_func_output(result)
    outer = [relax.Var(p.name, p.ty) for p in parameters]
    with builder.function("main", outer):
        with builder.dataflow():
            call = builder.emit_output(relax.Call(builder.get().get_global_var("body"), outer))
        builder.emit_func_output(call)
    passes = tvm.transform.Sequential([relax.transform.LegalizeOps(), relax.transform.FuseTIR()])
    (kernel,) = (f for _, f in passes(builder.get()).functions_items() if isinstance(f, PrimFunc))
    return kernel.without_attr("global_symbol")


def _tensor_constants(function: relax.Function) -> list[GenericConst]:
    """The constants that legalization leaves tensors: those of calls of other than two arguments."""
    values = [binding.value for block in function.body.blocks for binding in block.bindings]
    calls = [value for value in values if isinstance(value, relax.Call) and len(value.args) != 2]
    return list(dict.fromkeys(a for call in calls for a in call.args if isinstance(a, GenericConst)))


def _has_shape(value: relax.Expr, shape: tuple[int, ...]) -> bool:
    return isinstance(value.ty, relax.TensorType) and shape_of(value) == shape


def _is_number(value: relax.Expr) -> bool:
    """A constant without axes, or the bound of a clip."""
    if isinstance(value, GenericConst):
        return shape_of(value) == ()
    return not isinstance(value.ty, relax.TensorType) and not isinstance(value, relax.Var)
