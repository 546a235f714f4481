"""LiftWeights: what expands bit-packed weights moves out of ``main``, to run once when a package is loaded.

    main(x): w = expand_codes(const bits, const expansion); v = reshape(w); y = conv2d(x, v, …)
 →  main(x, v): y = conv2d(x, v, …)
    expand_weights(stream): w = expand_codes(stream, const expansion); v = reshape(w); return (v,)

The constant bits of all operators become one stream, the attribute ``mpq.weights`` of the module, which the package
holds in a file of its own. A module without such weights is left as it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from tvm_mpq.kernels import expand
from tvm_mpq.runtime.weights import EXPAND
from tvm_mpq.transform.substitute import substituted

STREAM = "mpq.weights"
"""The attribute of the module: the stream, a tensor uint8 [bytes]."""


@tvm.transform.module_pass(opt_level=0, name="LiftWeights")
class LiftWeights:
    """See the module."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass."""
        main = mod["main"]
        lifted, kept = _divide(mod, main)
        if not lifted:
            return mod
        made = {binding.var for binding in lifted}
        read = {v: None for binding in kept for v in relax.analysis.free_vars(binding.value) if v in made}
        chunks = _Chunks()
        result = mod.clone()
        result.update_func(mod.get_global_var("main"), _with_parameters(main, kept, list(read)))
        result[EXPAND] = _expanding(lifted, list(read), chunks)
        return result.with_attr(STREAM, tvm.runtime.tensor(chunks.stream()))


class _Chunks:
    """Byte strings one behind the other; equal ones only once."""

    def __init__(self) -> None:
        self._starts: dict[bytes, int] = {}
        self.length = 0

    def add(self, chunk: npt.NDArray[np.uint8]) -> int:
        """Where the chunk starts."""
        content = chunk.tobytes()
        if content not in self._starts:
            self._starts[content] = self.length
            self.length += len(content)
        return self._starts[content]

    def stream(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(b"".join(self._starts), np.uint8)


def _divide(mod: IRModule, main: relax.Function) -> tuple[list[relax.VarBinding], list[relax.VarBinding]]:
    """The bindings that expand weights, reshapes of these included, and the others."""
    lifted: list[relax.VarBinding] = []
    kept = []
    made = set()
    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if _expands(mod, value) or (_is_reshape(value) and value.args[0] in made):
                lifted.append(binding)
                made.add(binding.var)
            else:
                kept.append(binding)
    return lifted, kept


def _expands(mod: IRModule, value: relax.Expr) -> bool:
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != "relax.call_tir":
        return False
    attributes = mod[value.args[0]].attrs
    return attributes is not None and expand.ATTRIBUTE in attributes


def _is_reshape(value: relax.Expr) -> bool:
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.reshape"


def _with_parameters(
    main: relax.Function, kept: list[relax.VarBinding], read: list[relax.Var]
) -> relax.Function:
    """``main`` with the bindings ``kept`` only and the tensors ``read`` as further parameters."""
    values = {variable: relax.Var(variable.name, variable.ty) for variable in read}
    bindings = [relax.VarBinding(binding.var, substituted(binding.value, values)) for binding in kept]
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], main.body.body)
    parameters = [*main.params, *values.values()]
    return relax.Function(parameters, body, main.ret_ty, attrs=main.attrs)


def _expanding(lifted: list[relax.VarBinding], read: list[relax.Var], chunks: _Chunks) -> relax.Function:
    """The bindings ``lifted`` as a function of the stream that gives the tensors ``read``."""
    starts = [
        None if _is_reshape(binding.value) else chunks.add(binding.value.args[1][0].value.numpy())
        for binding in lifted
    ]
    stream = relax.Var("stream", relax.TensorType([chunks.length], "uint8"))
    builder = relax.BlockBuilder()
    values: dict[relax.Var, relax.Expr] = {}
    with builder.function(EXPAND, [stream]):
        with builder.dataflow():
            for binding, start in zip(lifted, starts, strict=True):
                value = substituted(binding.value, values)
                if start is not None:
                    expansion = value.args[1][1].value.numpy().copy()
                    expansion[0] += start
                    arguments = [stream, relax.const(expansion)]
                    value = relax.call_tir(value.args[0], arguments, value.ty_args[0])
                values[binding.var] = builder.emit(value, binding.var.name)
            output = builder.emit_output(relax.Tuple([values[variable] for variable in read]))
        builder.emit_func_output(output)
    return builder.get()[EXPAND]
