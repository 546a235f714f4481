"""What a search prints: the plan beside what it has to beat, on samples that nothing was chosen by."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from tvm_mpq.cli.tables import bytes_text
from tvm_mpq.cost.table import MEASURED
from tvm_mpq.search.candidates import NO_STEP
from tvm_mpq.search.goal import LATENCY
from tvm_mpq.search.result import Change, Row, SearchResult


def search_table(result: SearchResult) -> Table:
    """Latency, storage and loss of the rows, on the evaluation set."""
    samples = result.splits["samples"]["evaluation"]
    table = Table(title=f"On {samples} samples for evaluation", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("latency", "weights", "of fp32", "loss", "change", "95 % interval", "accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    fp32 = result.rows[0]
    for row in result.rows:
        table.add_row(row.name, *_cells(row, fp32), style="bold" if row is result.plan else None)
    if result.front:
        table.add_section()
    for row in result.front:
        table.add_row(row.name, *_cells(row, fp32))
    return table


def search_lines(result: SearchResult) -> list[str]:
    """What the table leaves to say."""
    counted = ", ".join(f"{count} {name}" for name, count in sorted(result.precisions.items(), reverse=True))
    kind = f" Latencies are of kernels measured on {result.latency_cpu}."
    if result.latency_kind != MEASURED:
        kind = " Latencies are MODELLED: nothing was run on the target."
    lines = [f"Plan: {counted} of the operators with weights.{kind}"]
    lines += result.latency_notes
    if result.binding:
        lines.append(
            f"NO PLAN MEETS THE LIMIT ON {' AND '.join(result.binding).upper()}: this is the nearest one."
        )
        if LATENCY in result.binding and result.goal["max_latency"] is None:
            lines.append(
                f"Nobody gave a limit on latency: {1e3 * result.limits[LATENCY]:.3f} ms is 1.05 of uniform w8a8's, or "
                "fp32's if that is less. --max-latency sets another."
            )
    for operator, factor in result.output_scale.items():
        lines.append(
            f"The output of {operator} is multiplied by {factor:g}, inside its weights: the loss wants a network that "
            f"is {'surer' if factor > 1 else 'less sure'} of itself. The second row is what that alone does to fp32."
        )
    if result.step is not None:
        change = result.step.change
        interval = f"{change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
        lines.append(
            f"Weights are rounded to where {result.step.part:g} of the step down the loss's gradient leads: {interval} "
            "in fp32, on samples for calibration that gave no direction."
            if result.step.taken
            else f"{NO_STEP.capitalize()} ({interval} at best): weights are rounded without it."
        )
    if result.plan.latency > result.rows[0].latency:
        lines.append("SLOWER THAN FP32: give --max-latency 1x to rule that out.")
    selected = result.selection
    lines.append(
        f"{len(result.tried)} plans were measured on {result.splits['samples']['selection']} samples for selection, "
        f"where the plan changes the loss by {selected.delta:+.4f} [{selected.low:+.4f}, {selected.high:+.4f}]. "
        f"Splits: {result.splits['how']}."
    )
    return lines


def print_search(console: Console, result: SearchResult) -> None:
    """Print the table and the lines."""
    console.print(search_table(result))
    for line in search_lines(result):
        console.print(line, markup=False)


def _cells(row: Row, fp32: Row) -> tuple[str, ...]:
    change = row.evaluation
    same = row is fp32
    return (
        f"{1e3 * row.latency:.3f} ms",
        bytes_text(row.storage),
        f"× {row.storage / fp32.storage:.3f}",
        f"{change.loss:.4f}",
        "–" if same else f"{change.delta:+.4f}",
        "–" if same else f"[{change.low:+.4f}, {change.high:+.4f}]",
        _accuracy(change),
    )


def _accuracy(change: Change) -> str:
    return "–" if change.accuracy is None else f"{100 * change.accuracy:.2f} %"
