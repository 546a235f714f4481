"""Adding operators to a canonical module."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from tvm_mpq.transform import attributes as attr


class CanonicalBuilder:
    """Starts from the inputs and operators of a canonical module; what is added to it stays canonical."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self._mod = mod
        self._inputs = dict(zip(attr.names(mod["main"], attr.INPUTS), mod["main"].params, strict=True))
        self._added: list[tuple[relax.Var, relax.Function, list[relax.Var]]] = []

    def input(self, name: str, ty: relax.TensorType) -> relax.Var:
        """A new input behind those there are."""
        self._inputs[name] = relax.Var(name, ty)
        return self._inputs[name]

    def call(
        self, name: str, kind: str, function: relax.Function, arguments: Sequence[relax.Var]
    ) -> relax.Var:
        """A new operator ``name`` that runs the private ``function`` on the network's tensors ``arguments``."""
        result = relax.Var(function.params[0].name if function.params else "constant", function.ret_ty)
        named = function.with_attrs({attr.OPERATOR: name, attr.KIND: kind})
        self._added.append((result, named, list(arguments)))
        return result

    def build(self, results: dict[str, relax.Var]) -> tvm.IRModule:
        """The module whose outputs are ``results``, by name: tensors of the first module or of added operators."""
        base = tvm.IRModule({v: f for v, f in self._mod.functions_items() if v.name_hint != "main"})
        builder = relax.BlockBuilder(base)
        parameters = [relax.Var(variable.name, variable.ty) for variable in self._inputs.values()]
        values = dict(zip(self._inputs.values(), parameters, strict=True))
        attributes = {attr.INPUTS: list(self._inputs), "mpq.outputs": list(results)}
        with builder.function("main", parameters, attrs=attributes):
            with builder.dataflow():
                for variable, _, call in attr.calls(self._mod):
                    values[variable] = builder.emit(relax.Call(call.op, [values[a] for a in call.args]))
                for variable, function, arguments in self._added:
                    target = builder.add_func(function, attr.text(function, attr.KIND))
                    values[variable] = builder.emit(relax.Call(target, [values[a] for a in arguments]))
                made = [values[result] for result in results.values()]
                output = builder.emit_output(made[0] if len(made) == 1 else relax.Tuple(made))
            builder.emit_func_output(output)
        return builder.get()


def one_call(parameters: Sequence[relax.Var], value: relax.Expr) -> relax.Function:
    """The private function of ``parameters`` that returns ``value``."""
    builder = relax.BlockBuilder()
    with builder.function("one", list(parameters), private=True):
        with builder.dataflow():
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    return builder.get()["one"]
