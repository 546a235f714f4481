"""Replacing variables in an expression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import relax
from tvm.ir import GlobalVar
from tvm.ir.expr import GenericConst


def substituted(expression: relax.Expr, values: Mapping[Any, relax.Expr]) -> relax.Expr:
    """``expression`` with each variable, constant and function of ``values`` replaced by its value."""

    @relax.expr_functor.mutator
    class Substitute(relax.PyExprMutator):
        def visit_var_(self, var: relax.Var) -> relax.Expr:
            return values.get(var, var)

        visit_dataflow_var_ = visit_var_

        def visit_generic_const_(self, op: GenericConst) -> relax.Expr:
            return values.get(op, op)

        def visit_global_var_(self, op: GlobalVar) -> relax.Expr:
            return values.get(op, op)

    return Substitute().visit_expr(expression)
