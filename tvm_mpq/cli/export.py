"""``tvm-mpq export``: a package in a form that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from tvm_mpq.cli.console import stdout, write_json
from tvm_mpq.cli.options import JsonOption, check_output_file
from tvm_mpq.errors import MpqError

_FORMATS = ("cpp-bundle",)


def export(
    package: Annotated[Path, typer.Argument(help="The package.", metavar="PACKAGE")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder for the result.")],
    form: Annotated[
        str, typer.Option("--format", help="cpp-bundle: library, weights, C++ runner and TVM's runtime.")
    ] = "cpp-bundle",
    runtime: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The packages tvm and tvm_ffi for the device's architecture."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Write a folder to copy to a device that has no Python."""
    check_output_file("--json", json)
    if form not in _FORMATS:
        raise MpqError(f"unknown --format {form!r}; known are {', '.join(_FORMATS)}")
    from tvm_mpq.bundle import write_bundle
    from tvm_mpq.cli.tables import bytes_text
    from tvm_mpq.runtime.package import Package

    bundle = write_bundle(Package.load(package), output, runtime)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("file")
    table.add_column("size", justify="right")
    for name, size in bundle.files.items():
        table.add_row(name, bytes_text(size))
    table.add_row("all", bytes_text(sum(bundle.files.values())), style="bold")
    console = stdout()
    console.print(table)
    for note in bundle.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    write_json(json, {"files": bundle.files, "notes": bundle.notes})
