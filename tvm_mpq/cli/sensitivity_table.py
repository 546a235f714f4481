"""The printed table of ``tvm-mpq analyze``."""

from __future__ import annotations

from rich import box
from rich.table import Table

from tvm_mpq.sensitivity.table import SensitivityTable

_ROWS = 60
"""More are in the file."""


def sensitivity_table(table: SensitivityTable, rows: int = _ROWS) -> Table:
    """The entries that matter most first, and the sums of all.

    What matters is how far the loss may go in either direction: the first-order change and the second-order part.
    """
    first = next(iter(table.entries.values()), None)
    samples = 0 if first is None else first.samples
    shown = sorted(table.entries.items(), key=lambda item: -(abs(item[1].mean) + item[1].second_order))[:rows]
    left = len(table.entries) - len(shown)
    title = f"Change of {table.loss} ({table.base_loss:.5f} in fp32) over {samples} samples"
    caption = f"{left} smaller ones are in the file" if left else None
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption=caption)
    result.add_column("operator", overflow="fold")
    for name in ("precision", "change", "±", "input", "weights", "2nd order"):
        result.add_column(name, justify="right")
    measured = any(entry.measured is not None for entry in table.entries.values())
    if measured:
        result.add_column("measured", justify="right")
    for (operator, precision), entry in shown:
        cells = [
            operator,
            precision,
            f"{entry.mean:+.5f}",
            f"{entry.stderr:.5f}",
            f"{entry.input_part:+.5f}",
            f"{entry.weight_part:+.5f}",
            f"{entry.second_order:.5f}",
        ]
        if measured:
            cells.append("–" if entry.measured is None else f"{entry.measured:+.5f}")
        result.add_row(*cells)
    result.add_section()
    for precision in table.precisions:
        entries = [entry for (_, name), entry in table.entries.items() if name == precision]
        sums = [
            sum(getattr(e, part) for e in entries)
            for part in ("mean", "input_part", "weight_part", "second_order")
        ]
        cells = ["sum over operators", precision, f"{sums[0]:+.5f}", "", f"{sums[1]:+.5f}", f"{sums[2]:+.5f}"]
        result.add_row(*cells, f"{sums[3]:.5f}", *([""] if measured else []))
    return result
