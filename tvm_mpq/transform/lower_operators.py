"""LowerOperators: every annotated operator becomes a call of a TIR kernel on NHWC tensors, with packed constants.

    main: lv = op_0(x); lv1 = op_1(lv)   →   main: q = quantize_to_pixels(x); lv = conv2d_w8a8_…(q, W, …); …

Borders between 8-bit and float regions, and between ONNX's layout and NHWC, become kernels of their own. Operators
without a kernel keep their Relax body: elementwise ones as one function in the layout at hand, others inlined on float
tensors in ONNX's layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import tvm
from tvm import IRModule, relax
from tvm.tirx import PrimFunc

from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import CUDA
from tvm_mpq.kernels.spec import TileLookup, default_tiles
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.elementwise_body import is_elementwise, lower_elementwise
from tvm_mpq.transform.fused_additions import fused_additions
from tvm_mpq.transform.lower_binary import lower_binary
from tvm_mpq.transform.lower_channel_moments import lower_channel_moments
from tvm_mpq.transform.lower_elementwise import lower_activation, lower_add, lower_concat
from tvm_mpq.transform.lower_inner_products import lower_inner_products
from tvm_mpq.transform.lower_moving import lower_move, lower_resize, lower_slice
from tvm_mpq.transform.lower_pointwise import lower_pointwise
from tvm_mpq.transform.lower_pooling import lower_average_pool, lower_global_average_pool, lower_max_pool
from tvm_mpq.transform.lower_rows import lower_batch_matmul, lower_layer_norm, lower_softmax
from tvm_mpq.transform.lower_transposed import lower_transposed
from tvm_mpq.transform.lower_weighted import lower_convolution, lower_depthwise, lower_matmul
from tvm_mpq.transform.operation import Operation
from tvm_mpq.transform.operator_body import shape_of
from tvm_mpq.transform.substitute import substituted
from tvm_mpq.transform.tensors import Emitter, Form, Layout, Tensor

_ON_AN_INSTRUCTION: dict[str, Callable[[Emitter, Operation, str], relax.Var]] = {
    "conv2d": lower_convolution,
    "depthwise_conv2d": lower_depthwise,
    "matmul": lower_matmul,
    "conv2d_transpose": lower_transposed,
    "batch_matmul": lower_batch_matmul,
}
_ON_ANY: dict[str, Callable[[Emitter, Operation], relax.Var]] = {
    "add": lower_add,
    "activation": lower_activation,
    "broadcast_add": lower_binary,
    "sub": lower_binary,
    "mul": lower_binary,
    "pointwise": lower_pointwise,
    "sigmoid": lower_pointwise,
    "softmax": lower_softmax,
    "layer_norm": lower_layer_norm,
    "reshape": lower_move,
    "permute_dims": lower_move,
    "slice": lower_slice,
    "resize_nearest": lower_resize,
    "resize_linear": lower_resize,
    "concat": lower_concat,
    "max_pool2d": lower_max_pool,
    "avg_pool2d": lower_average_pool,
    "global_avg_pool": lower_global_average_pool,
    "inner_products": lower_inner_products,
    "channel_moments": lower_channel_moments,
}


@tvm.transform.module_pass(opt_level=0, name="LowerOperators")
class LowerOperators:
    """See the module. ``instruction`` is the target's row of the intrinsic table, ``tiles`` knows the tuned tiles.

    With ``observe`` the results are every operator's output, each in the layout it is held in. ``weights`` gives
    operators integer weights, of their plan's precision; the others' are rounded to nearest here.
    """

    def __init__(
        self,
        instruction: str,
        observe: bool = False,
        weights: Mapping[str, QuantizedWeights] | None = None,
        any_codes: bool = False,
        tiles: TileLookup = default_tiles,
    ) -> None:
        self.instruction = instruction
        self.observe = observe
        self.weights = weights or {}
        self.any_codes = any_codes
        self.tiles = tiles

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass; raises MpqError for weights that are not of an operator here or of its precision."""
        _check_weights(mod, self.weights)
        builder = relax.BlockBuilder()
        emitter = Emitter(builder, self.tiles, self.instruction in CUDA)
        main = mod["main"]
        grids = attr.input_grids(main)
        tensors: dict[relax.Var, Tensor] = {}
        parameters = []
        for name, parameter in zip(attr.names(main, attr.INPUTS), main.params, strict=True):
            variable = relax.Var(parameter.name, parameter.ty)
            parameters.append(variable)
            dtype = str(parameter.ty.dtype)
            forms: dict[Form, relax.Var] = {(dtype, "plain"): variable}
            tensors[parameter] = Tensor(shape_of(parameter), grids.get(name), forms, name)
        emitter.opaque = {
            v: builder.add_func(f, v.name_hint) for v, f in mod.functions_items() if isinstance(f, PrimFunc)
        }
        with builder.function("main", parameters, attrs=dict(main.attrs)):
            with builder.dataflow():
                fused = {} if self.observe else fused_additions(mod)
                waiting: dict[relax.Var, Operation] = {}
                for variable, function, call in attr.calls(mod):
                    operation = _operation(variable, function, call, tensors, self.weights, self.any_codes)
                    tensors[variable] = operation.output
                    if variable in fused.values():
                        waiting[variable] = operation
                    elif variable in fused:
                        self._lower_sum(emitter, waiting[fused[variable]], operation)
                    else:
                        self._lower(emitter, operation)
                emitter.reader = ""
                if self.observe:
                    results = [
                        next(iter(tensors[variable].forms.values())) for variable, _, _ in attr.calls(mod)
                    ]
                else:
                    results = [self._result(emitter, tensors[result]) for result in attr.results(mod)]
                single = len(results) == 1 and not self.observe
                output = builder.emit_output(results[0] if single else relax.Tuple(results))
            builder.emit_func_output(output)
        lowered = builder.get()
        owners = json.dumps(emitter.owners)
        lowered.update_func(lowered.get_global_var("main"), lowered["main"].with_attr(attr.OWNERS, owners))
        return lowered

    def _lower(self, emitter: Emitter, operation: Operation) -> None:
        emitter.reader = operation.name
        layout: Layout = operation.output.native
        if operation.kind == "matmul":
            layout = "plain"  # rows of a tensor of any rank, whose channels are last
        if operation.kind in _ON_AN_INSTRUCTION:
            result = _ON_AN_INSTRUCTION[operation.kind](emitter, operation, self.instruction)
        elif operation.kind in _ON_ANY:
            result = _ON_ANY[operation.kind](emitter, operation)
        elif is_elementwise(operation.function):
            result = lower_elementwise(emitter, operation)
        else:
            layout = "plain"
            result = _inline(emitter, operation)
        emitter.owners.setdefault(result.name, ("operator", operation.name, ""))
        if not operation.output.forms:
            operation.output.forms[str(result.ty.dtype), layout] = result

    def _lower_sum(self, emitter: Emitter, convolution: Operation, addition: Operation) -> None:
        """A convolution and the sum that alone reads it: one kernel where its template can, else two."""
        emitter.reader = convolution.name
        result = lower_convolution(emitter, convolution, self.instruction, addition)
        emitter.owners.setdefault(result.name, ("operator", convolution.name, ""))
        if not addition.output.forms:
            convolution.output.forms["uint8", "pixels"] = result
            self._lower(emitter, addition)

    @staticmethod
    def _result(emitter: Emitter, tensor: Tensor) -> relax.Var:
        dtypes = {dtype for dtype, _ in tensor.forms}
        return emitter.read(tensor, "float32" if dtypes <= {"uint8", "float32"} else dtypes.pop(), "plain")


def _operation(
    variable: relax.Var,
    function: relax.Function,
    call: relax.Call,
    tensors: dict[relax.Var, Tensor],
    weights: Mapping[str, QuantizedWeights],
    any_codes: bool,
) -> Operation:
    grid = None
    if attr.text(function, attr.SCALE):
        grid = Grid(float(function.attrs[attr.SCALE]), int(function.attrs[attr.ZERO_POINT]))
    name = attr.text(function, attr.OPERATOR)
    return Operation(
        name=name,
        kind=attr.text(function, attr.KIND),
        function=function,
        inputs=tuple(tensors[argument] for argument in call.args),
        output=Tensor(shape_of(variable), grid, name=name),
        executed=attr.executed(function),
        stored=attr.text(function, attr.STORED),
        weights=weights.get(name),
        any_codes=any_codes,
    )


def _check_weights(mod: IRModule, weights: Mapping[str, QuantizedWeights]) -> None:
    functions = {attr.text(function, attr.OPERATOR): function for _, function, _ in attr.calls(mod)}
    for name, given in weights.items():
        if name not in functions or attr.text(functions[name], attr.KIND) not in _ON_AN_INSTRUCTION:
            raise MpqError(
                f"weights are given for {name!r}, which is no operator with weights of the network"
            )
        asked = attr.asked(functions[name])
        if (asked.weight_bits, asked.group) != (given.bits, given.group):
            form = f"{given.bits} bits" + (f" in groups of {given.group}" if given.group else "")
            raise MpqError(f"the weights given for {name!r} have {form}, where the plan says {asked}")


def _inline(emitter: Emitter, operation: Operation) -> relax.Var:
    """The operator's own Relax body on float tensors in ONNX's layout."""
    arguments = []
    for tensor, parameter in zip(operation.inputs, operation.function.params, strict=True):
        arguments.append(emitter.read(tensor, str(parameter.ty.dtype), "plain"))
    values: dict[relax.Var, relax.Expr] = dict(zip(operation.function.params, arguments, strict=True))
    for block in operation.function.body.blocks:
        for binding in block.bindings:
            value = substituted(binding.value, {**values, **emitter.opaque})
            values[binding.var] = emitter.builder.emit(value, operation.name)
    result = values[operation.function.body.body]
    assert isinstance(result, relax.Var)
    return result
