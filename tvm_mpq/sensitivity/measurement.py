"""The direct check of the estimates: the network with one operator alone at another precision, run and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rich.progress import Progress

from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.sensitivity.statistics import standard_error
from tvm_mpq.sensitivity.table import SensitivityTable


def measured(
    table: SensitivityTable,
    evaluator: PlanEvaluator,
    progress: Progress | None = None,
    save: Callable[[SensitivityTable], None] | None = None,
) -> SensitivityTable:
    """``table`` with the change of the loss over the evaluator's samples in each entry that has none yet.

    The arithmetic is that of a package of such a plan. ``save`` is called after each entry with the table so far.
    """
    names = [operator.name for operator in table.operators]
    fp32 = PrecisionPlan.uniform(names, FP32)
    waiting = [key for key, entry in table.entries.items() if entry.measured is None]
    if not waiting:
        return table
    before = evaluator.losses(fp32).losses
    task = None if progress is None else progress.add_task("measuring", total=len(waiting))
    for operator, precision in waiting:
        plan = PrecisionPlan({**fp32.operators, operator: Precision.parse(precision)})
        change = evaluator.losses(plan).losses - before
        entry = replace(
            table.entries[operator, precision],
            measured=float(change.mean()),
            measured_stderr=standard_error(change),
        )
        table = replace(table, entries={**table.entries, (operator, precision): entry})
        if save is not None:
            save(table)
        if progress is not None and task is not None:
            progress.advance(task)
    return table
