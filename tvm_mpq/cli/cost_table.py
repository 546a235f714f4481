"""How a cost table is printed."""

from __future__ import annotations

from rich import box
from rich.table import Table

from tvm_mpq.cost.table import MODELLED, CostTable

TOLERANCE = 0.1
"""How far the table's sum may be from a measured network before it is said to be wrong."""


def cost_table(table: CostTable) -> Table:
    """Microseconds of each operator at each precision, and of leaving for and entering the other dtype."""
    title = f"{table.kind} cost in µs: {table.target} ({table.cpu}), {table.threads} thread(s)"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("operator", overflow="fold")
    shown.add_column("kind")
    for column in (*table.precisions, "to float", "to 8 bits"):
        shown.add_column(column, justify="right", no_wrap=True)
    leaving = {boundary.producer: boundary for boundary in table.boundaries}
    for operator in table.operators:
        boundary = leaving.get(operator.name)
        cells = [_us(operator.seconds[precision]) for precision in table.precisions]
        for asked, executed in operator.executed.items():
            if executed != asked:
                cells[table.precisions.index(asked)] += f" ({executed})"
        ends = ("–", "–") if boundary is None else (_us(boundary.to_float), _us(boundary.to_integer))
        shown.add_row(operator.name, operator.kind, *cells, *ends)
    shown.add_section()
    totals = [_us(sum(o.seconds[p] for o in table.operators)) for p in table.precisions]
    shown.add_row("total", "", *totals, "", "")
    return shown


def check_lines(table: CostTable) -> list[str]:
    """The table's sums against measured networks; or that it is a model."""
    if table.kind == MODELLED:
        return ["Modelled, not measured: each kernel at its roof on this target; real kernels take longer."]
    lines = []
    for check in table.checks:
        verdict = "" if abs(check.ratio - 1.0) <= TOLERANCE else f"  MORE THAN {100 * TOLERANCE:.0f} % OFF"
        lines.append(
            f"{check.plan}: the table predicts {check.predicted * 1e3:.3f} ms, the whole network takes "
            f"{check.measured * 1e3:.3f} ms (× {check.ratio:.3f}){verdict}"
        )
    return lines


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"
