"""How a profile is printed."""

from __future__ import annotations

from rich import box
from rich.table import Table

from tvm_mpq.cli.tables import bytes_text
from tvm_mpq.runtime.profile import Profile, ProfileRow


def profile_table(found: Profile) -> Table:
    """One line an operator or border, the time lost over its roof first; their total last."""
    title = f"Profile: {found.runs} runs, {found.peaks.threads} thread(s)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("operator", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("precision")
    for column in ("calls", "µs", "M MAC", "GOPS", "moved", "peak", "LLC", "DRAM", "roof µs", "×", "lost µs"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(*_cells(row))
    table.add_section()
    roof = sum(row.bound_us for row in found.rows)
    macs = sum(row.macs for row in found.rows)
    table.add_row(
        "total",
        "",
        "",
        str(sum(row.calls for row in found.rows)),
        f"{found.sum_us:.1f}",
        f"{macs / 1e6:.2f}",
        f"{2e-3 * macs / found.sum_us:.1f}",
        bytes_text(sum(row.bytes for row in found.rows)),
        "",
        "",
        "",
        f"{roof:.1f}",
        f"{found.sum_us / roof:.2f}" if roof else "–",
        f"{found.sum_us - roof:.1f}",
    )
    return table


def profile_lines(found: Profile) -> list[str]:
    """What the table leaves to say: the peaks, the sum against the whole, and what is furthest from its roof."""
    peaks = found.peaks
    rates = ", ".join(f"{step} {rate / 1e9:.1f} GMAC/s" for step, rate in peaks.macs_per_second.items())
    lines = [
        f"Measured peaks: {rates or 'no multiplications'}; reading {peaks.second_cache_bandwidth / 1e9:.0f} GB/s from "
        f"L2, {peaks.last_cache_bandwidth / 1e9:.0f} from LLC, {peaks.memory_bandwidth / 1e9:.0f} from DRAM.",
        f"Sum of the rows {found.sum_us:.0f} µs, whole network undisturbed {found.network_us:.0f} µs "
        f"(× {found.sum_us / found.network_us:.3f}); {found.instrument_us:.0f} µs of instrument are subtracted.",
    ]
    for number, row in enumerate(found.furthest, 1):
        lines.append(f"{number}. furthest from its roof: {row.name} ({row.kind}): {why(row)}")
    return lines


def why(row: ProfileRow) -> str:
    """How far a row is from its roof, and which roof that is."""
    roof = "multiplications of " + row.step if row.bound_by == "compute" else f"{bytes_text(row.bytes)} moved"
    reached = "" if row.peak_share is None else f", {100 * row.peak_share:.0f} % of its peak"
    return (
        f"{row.time_us:.0f} µs, {row.lost_us:.0f} µs over the {row.bound_us:.0f} µs that {roof} take{reached}"
    )


def _cells(row: ProfileRow) -> list[str]:
    return [
        row.name,
        row.kind,
        row.precision,
        str(row.calls),
        f"{row.time_us:.1f}",
        f"{row.macs / 1e6:.2f}" if row.macs else "–",
        f"{row.gops:.1f}" if row.macs else "–",
        bytes_text(row.bytes),
        "–" if row.peak_share is None else f"{100 * row.peak_share:.0f} %",
        f"{100 * row.last_cache_share:.0f} %",
        f"{100 * row.memory_share:.0f} %",
        f"{row.bound_us:.1f}",
        f"{row.over:.2f}" if row.bound_us else "–",
        f"{row.lost_us:.1f}",
    ]
