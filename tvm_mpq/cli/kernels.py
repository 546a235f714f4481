"""``tvm-mpq kernels``: what NVIDIA's compiler made of a package's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from tvm_mpq.cli.console import stdout, write_json
from tvm_mpq.cli.options import JsonOption, check_output_file
from tvm_mpq.errors import MpqError

if TYPE_CHECKING:
    from tvm_mpq.cuda_check.report import KernelRow


def kernels(
    package: Annotated[
        Path, typer.Argument(help="A package, a library, a fat binary or a cubin.", metavar="PACKAGE")
    ],
    architecture: Annotated[
        str | None, typer.Option(metavar="sm_80", help="Only this architecture.", show_default="all")
    ] = None,
    json: JsonOption = None,
) -> None:
    """List a package's GPU kernels: registers, spills, shared memory, occupancy and instructions.

    It needs NVIDIA's cuobjdump and nvdisasm, and no GPU.
    """
    check_output_file("--json", json)
    from tvm_mpq.cuda_check.report import code_of, kernel_rows

    rows = kernel_rows(code_of(package))
    known = sorted({row.code.architecture for row in rows})
    if architecture is not None and architecture not in known:
        raise MpqError(f"{package} has no code for {architecture}; it has some for {', '.join(known)}")
    chosen = [row for row in rows if architecture in (None, row.code.architecture)]
    for name in known:
        mine = [row for row in chosen if row.code.architecture == name]
        if mine:
            stdout().print(_table(name, mine))
    write_json(json, [row.as_json() for row in chosen])


def _table(architecture: str, rows: list[KernelRow]) -> Table:
    table = Table(title=f"{architecture}: {len(rows)} kernels", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("kernel", overflow="fold", ratio=2)
    for name in ("threads", "registers", "spills", "shared", "warps", "limited by"):
        table.add_column(name, justify="right")
    table.add_column("instructions", overflow="fold", ratio=3)
    for row in rows:
        code, fits = row.code, row.occupancy
        mix = [f"{kind.replace(' ', '.')} {count}" for kind, count in code.instructions.items()]
        table.add_row(
            code.name.removesuffix("_kernel"),
            str(code.threads or "–"),
            str(code.registers),
            str(code.spills),
            str(code.shared + row.dynamic),
            "–" if fits is None else f"{fits.warps} ({fits.share:.0%})",
            "–" if fits is None else fits.limiter or "too large",
            ", ".join([*mix, f"all {code.total}"]),
        )
    return table
