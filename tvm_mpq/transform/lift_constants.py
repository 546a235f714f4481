"""LiftConstants: what a network computes with becomes an argument, so that one build serves many weights."""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.ir.expr import GenericConst
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.runtime import Tensor


@tvm.transform.module_pass(opt_level=0, name="LiftConstants")
class LiftConstants:
    """Rewrite ``main(x) { … kernel(x, C) … }`` → ``main(x, c) { … kernel(x, c) … }`` for every tensor constant C.

    The new parameters follow the old ones in the order of the constants' first use; ``values`` holds them after it.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass to ``main``."""
        lift = _Lift(mod)
        main = mod["main"]
        body = lift.visit_expr(main.body)
        result = mod.clone()
        parameters = [*main.params, *lift.parameters]
        result.update_func(
            mod.get_global_var("main"),
            relax.Function(parameters, body, main.ret_ty, main.is_pure, main.attrs),
        )
        self.values = lift.values
        return result


@mutator
class _Lift(PyExprMutator):
    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self.parameters: list[relax.Var] = []
        self.values: list[Tensor] = []

    def visit_generic_const_(self, op: GenericConst) -> relax.Expr:
        """A new parameter in a tensor constant's place."""
        if not isinstance(op.value, Tensor):
            return op
        parameter = relax.Var(f"constant_{len(self.values)}", op.ty)
        self.parameters.append(parameter)
        self.values.append(op.value)
        return parameter
