"""Replacing variables in an expression."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax


def substituted(expression: relax.Expr, values: Mapping[relax.Var, relax.Expr]) -> relax.Expr:
    """``expression`` with each variable of ``values`` replaced by its value."""

    @relax.expr_functor.mutator
    class Substitute(relax.PyExprMutator):
        def visit_var_(self, var: relax.Var) -> relax.Expr:
            return values.get(var, var)

        visit_dataflow_var_ = visit_var_

    return Substitute().visit_expr(expression)
