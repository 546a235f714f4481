"""A choice problem as a mixed-integer linear program.

Variables: x[i, p] ∈ {0, 1}, operator i takes choice p, Σ_p x[i, p] = 1. A boundary between i and j costs by the pair of
choices, a product; it becomes linear with y[g, h] ∈ [0, 1] and Σ_h y[g, h] = Σ_{p ∈ g} x[i, p],
Σ_g y[g, h] = Σ_{q ∈ h} x[j, q], where g and h are groups of choices that behave alike on that edge (8-bit and float,
usually). Once x is integral y is the product, so only x needs to be integral; and the relaxation is the local
marginal polytope, which is exact on a tree of operators (Wainwright & Jordan 2008, §4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from tvm_mpq.search.problem import Boundary, Choices, Floats, Problem


@dataclass(frozen=True)
class Program:
    """The variables and equalities of one problem; ``rows[metric]`` is the metric as a vector over all variables.

    The first ``len(operator)`` variables are x; variable v says that operator ``operator[v]`` takes ``choice[v]``.
    """

    operator: npt.NDArray[np.int64]
    choice: npt.NDArray[np.int64]
    rows: Mapping[str, Floats]
    equalities: sparse.csr_array
    right: Floats

    @property
    def variables(self) -> int:
        """The number of all variables, y included."""
        return len(next(iter(self.rows.values())))

    def choices(self, solution: Floats) -> Choices:
        """The choice of each operator, int64 [N], in a solution of the program."""
        picked = np.flatnonzero(np.rint(solution[: len(self.operator)]) == 1.0)
        result = np.full(int(self.operator[-1]) + 1, -1, np.int64)
        result[self.operator[picked]] = self.choice[picked]
        return result


def build_program(problem: Problem, metrics: Sequence[str]) -> Program:
    """The program of ``problem`` with the rows of ``metrics``."""
    used = [edge for edge in problem.boundaries if any(np.any(edge.costs.get(m, 0.0)) for m in metrics)]
    keep = _undominated(problem, used, metrics)
    operator, choice = np.nonzero(keep)
    index = np.full(keep.shape, -1, np.int64)
    index[operator, choice] = np.arange(len(operator))
    rows = {metric: [problem.costs[metric][operator, choice]] for metric in metrics}

    lines: list[npt.NDArray[np.int64]] = [operator]
    columns = [np.arange(len(operator))]
    values = [np.ones(len(operator))]
    count, line = len(operator), len(problem.allowed)
    for edge in used:
        sources, targets, costs = _grouped(edge, keep, metrics)
        shape = (int(sources.max()) + 1, int(targets.max()) + 1)
        y = count + np.arange(shape[0] * shape[1]).reshape(shape)
        count += y.size
        for metric in metrics:
            rows[metric].append(costs[metric].reshape(-1))
        for end, groups, pairs in [(edge.source, sources, y), (edge.target, targets, y.T)]:
            x = index[end, keep[end]]
            lines += [line + groups, np.repeat(line + np.arange(len(pairs)), pairs.shape[1])]
            columns += [x, pairs.reshape(-1)]
            values += [np.ones(len(x)), -np.ones(pairs.size)]
            line += len(pairs)
    matrix = sparse.csr_array(
        (np.concatenate(values), (np.concatenate(lines), np.concatenate(columns))), shape=(line, count)
    )
    right = np.zeros(line)
    right[: len(problem.allowed)] = 1.0
    return Program(operator, choice, {m: np.concatenate(parts) for m, parts in rows.items()}, matrix, right)


def _grouped(
    edge: Boundary, keep: npt.NDArray[np.bool_], metrics: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, Floats]]:
    """The group of each kept choice at both ends, and each metric between groups."""
    kept = np.ix_(keep[edge.source], keep[edge.target])
    zero = np.zeros((keep.shape[1], keep.shape[1]))
    tables = {metric: edge.costs.get(metric, zero)[kept] for metric in metrics}
    together = np.stack(list(tables.values()), axis=2)
    _, first, sources = np.unique(
        together.reshape(len(together), -1), axis=0, return_index=True, return_inverse=True
    )
    across = together.transpose(1, 0, 2)
    _, second, targets = np.unique(
        across.reshape(len(across), -1), axis=0, return_index=True, return_inverse=True
    )
    corner = np.ix_(first, second)
    return sources.reshape(-1), targets.reshape(-1), {m: table[corner] for m, table in tables.items()}


def _undominated(
    problem: Problem, edges: Sequence[Boundary], metrics: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Allowed choices without those that another one of the operator beats or equals in every metric and edge.

    Of equals the first stays. Beating is transitive, so what beats a dropped choice is itself kept or beaten.
    """
    features: list[list[Floats]] = [
        [problem.costs[m][i][:, None] for m in metrics] for i in range(len(problem.allowed))
    ]
    for edge in edges:
        for metric in metrics:
            if metric in edge.costs:
                features[edge.source].append(edge.costs[metric])
                features[edge.target].append(edge.costs[metric].T)
    keep = problem.allowed.copy()
    for i, parts in enumerate(features):
        allowed = np.flatnonzero(problem.allowed[i])
        table = np.concatenate(parts, axis=1)[allowed]
        better = (table[:, None] <= table[None]).all(axis=2)  # [a, b]: a is nowhere worse than b
        first = np.arange(len(allowed))
        loses = better & (~better.T | (first[:, None] < first[None]))
        keep[i, allowed[loses.any(axis=0)]] = False
    return keep
