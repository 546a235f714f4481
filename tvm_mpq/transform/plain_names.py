"""PlainNames: variables get names that are identifiers of C, from which TVM makes those of CUDA's parameters.

main("/conv/Conv"): "/pool/MaxPool" = …   →   main(_conv_Conv): _pool_MaxPool = …
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import tvm
from tvm import IRModule, relax

from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.substitute import substituted


@tvm.transform.module_pass(opt_level=0, name="PlainNames")
class PlainNames:
    """See the module. Whose each variable is (``mpq.owners``) is noted under the new names."""

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass."""
        result = mod.clone()
        for variable, function in mod.functions_items():
            if isinstance(function, relax.Function):
                result.update_func(variable, _renamed(function))
        return result


def _renamed(function: relax.Function) -> relax.Function:
    names = _Names()
    values: dict[relax.Var, relax.Expr] = {}

    def fresh(variable: relax.Var) -> relax.Var:
        made = type(variable)(names.plain(variable.name), variable.ty)
        values[variable] = made
        return made

    parameters = [fresh(parameter) for parameter in function.params]
    blocks = []
    for block in function.body.blocks:
        bindings = []
        for binding in block.bindings:
            value = substituted(binding.value, values)
            bindings.append(relax.VarBinding(fresh(binding.var), value))
        kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
        blocks.append(kind(bindings))
    body = relax.SeqExpr(blocks, substituted(function.body.body, values))
    renamed = relax.Function(parameters, body, function.ret_ty, attrs=function.attrs)
    if attr.OWNERS in (function.attrs or {}):
        owners: Mapping[str, list[str]] = json.loads(str(function.attrs[attr.OWNERS]))
        kept = {names.given.get(name, name): owner for name, owner in owners.items()}
        renamed = renamed.with_attr(attr.OWNERS, json.dumps(kept))
    return renamed


class _Names:
    """Plain names, none twice; equal names stay equal."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}

    def plain(self, name: str) -> str:
        if name not in self.given:
            base = re.sub(r"\W", "_", name, flags=re.ASCII)
            base = base if not base[:1].isdigit() else f"_{base}"
            taken, candidate, count = set(self.given.values()), base, 1
            while candidate in taken:
                candidate, count = f"{base}_{count}", count + 1
            self.given[name] = candidate
        return self.given[name]
