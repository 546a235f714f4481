"""The tables that commands print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.table import Table

from tvm_mpq.kernels.cuda.units import macs_by_unit
from tvm_mpq.runtime.metadata import KernelCall, OperatorRecord
from tvm_mpq.runtime.result import LossResult, Result
from tvm_mpq.tuning.result import TuningResult

_STORAGE = {
    "file": "file",
    "weights": "weights in the file",
    "weights_resident": "weights in memory",
    "resident": "resident",
}
"""The fields of :class:`~tvm_mpq.runtime.result.StorageBytes` as tables name them."""


def bytes_text(count: int) -> str:
    """A number of bytes for people: ``1.23 MB`` is 1.23 million."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def units_line(calls: Sequence[KernelCall]) -> str:
    """What does a GPU's multiply-accumulates, in shares of all."""
    counts = macs_by_unit(calls)
    total = max(1, sum(counts.values()))
    shares = ", ".join(f"{100 * count / total:.1f} % {unit}" for unit, count in counts.items())
    return f"{total / 1e6:.1f} M multiply-accumulates: {shares}"


def operators_table(operators: Sequence[OperatorRecord]) -> Table:
    """Operators counted by kind and precisions: a network has hundreds, and most of them alike."""
    table = Table(title="Operators", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("count", justify="right")
    for name in ("kind", "asked", "chosen", "executed", "reason"):
        table.add_column(name, overflow="fold")
    alike = Counter((o.kind, o.asked, o.chosen, o.executed, o.reason) for o in operators)
    for cells, count in sorted(alike.items()):
        table.add_row(str(count), *cells)
    return table


def result_table(name: str, result: Result) -> Table:
    """Latency, storage and loss of a package beside its fp32 baseline."""
    title = f"{name}: {result.loss.samples} samples, {result.latency_ms.threads} thread(s)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("fp32", "package", "change"):
        table.add_column(column, justify="right")
    fp32 = result.baseline
    for field in ("median", "p90", "min"):
        ours = getattr(result.latency_ms, field)
        theirs = None if fp32 is None else getattr(fp32.latency_ms, field)
        table.add_row(f"latency {field}", _ms(theirs), _ms(ours), _ratio(ours, theirs))
    for field in _STORAGE:
        ours = getattr(result.storage_bytes, field)
        theirs = None if fp32 is None else getattr(fp32.storage_bytes, field)
        shown = "–" if theirs is None else bytes_text(theirs)
        table.add_row(f"storage {_STORAGE[field]}", shown, bytes_text(ours), _ratio(ours, theirs))
    _add_loss(table, None if fp32 is None else fp32.loss, result.loss)
    return table


def tuning_table(result: TuningResult) -> Table:
    """Every kernel's time by default and tuned, what takes longest first, and each plan's total."""
    title = f"Tuning: {result.threads} thread(s), {result.seconds / 60:.1f} min"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("kernel", overflow="fold")
    for column in ("calls", "default", "tuned", "faster", "trials"):
        table.add_column(column, justify="right")
    for plan in dict.fromkeys(kernel.plan for kernel in result.kernels):
        mine = [kernel for kernel in result.kernels if kernel.plan == plan]
        for kernel in sorted(mine, key=lambda k: -k.count * k.default_seconds):
            tuned = (_ms(1e3 * kernel.seconds), f"× {kernel.ratio:.2f}") if kernel.tuned else ("–", "–")
            default = _ms(1e3 * kernel.default_seconds)
            table.add_row(kernel.name, str(kernel.count), default, *tuned, str(kernel.trials))
        default_total, total = result.totals(plan)
        ratio = f"× {default_total / total:.3f}" if total else "–"
        table.add_row(
            f"{plan}: all calls",
            str(sum(kernel.count for kernel in mine)),
            _ms(1e3 * default_total),
            _ms(1e3 * total),
            ratio,
            str(sum(kernel.trials for kernel in mine)),
            style="bold",
            end_section=True,
        )
    return table


def verdict(result: Result) -> list[str]:
    """What the table leaves to say: no baseline, slower than fp32, kernels untuned, what resident means."""
    lines = []
    if result.baseline is None:
        lines.append(f"No comparison with fp32: {result.baseline_reason}.")
    elif result.slower:
        ours, theirs = result.latency_ms.median, result.baseline.latency_ms.median
        lines.append(
            f"SLOWER THAN FP32: the package takes {ours / theirs:.2f} times as long "
            f"({ours:.3f} ms against {theirs:.3f} ms)."
        )
    untuned = result.tiles.untuned
    if untuned:
        lines.append(
            f"Tiles: {result.tiles.tuned} kernels tuned, {len(untuned)} not: {', '.join(untuned)}. "
            "'tvm-mpq tune' tunes them."
        )
    elif result.tiles.tuned:
        lines.append(f"Tiles: all {result.tiles.tuned} kernels tuned.")
    lines.append("resident: growth of memory in a fresh process from loading to after the first run.")
    return lines


def _add_loss(table: Table, fp32: LossResult | None, ours: LossResult) -> None:
    change = "–"
    if ours.delta is not None:
        interval = (
            "" if ours.ci95 is None else f"  [{_number(ours.ci95[0], '+')}, {_number(ours.ci95[1], '+')}]"
        )
        change = f"{_number(ours.delta, '+')}{interval}"
    table.add_row(ours.name, "–" if fp32 is None else _number(fp32.mean), _number(ours.mean), change)
    if ours.accuracy is None:
        return
    theirs = None if fp32 is None else fp32.accuracy
    points = "–" if theirs is None else f"{100 * (ours.accuracy - theirs):+.2f} points"
    shown = "–" if theirs is None else f"{100 * theirs:.2f} %"
    table.add_row("accuracy", shown, f"{100 * ours.accuracy:.2f} %", points)


def _number(value: float, sign: str = "") -> str:
    """Five decimals, or an exponent for what those would round away."""
    return f"{value:{sign}.2e}" if 0 < abs(value) < 1e-4 else f"{value:{sign}.5f}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f} ms"


def _ratio(ours: float, theirs: float | None) -> str:
    return "–" if not theirs else f"× {ours / theirs:.3f}"
