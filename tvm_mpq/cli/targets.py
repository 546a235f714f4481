"""``tvm-mpq targets``: what can be compiled for."""

from __future__ import annotations

import dataclasses

from rich import box
from rich.table import Table

from tvm_mpq.cli.console import stdout, write_json
from tvm_mpq.cli.options import JsonOption, check_output_file
from tvm_mpq.errors import MpqError
from tvm_mpq.target import Target, load_target, missing_features, target_names


def targets(json: JsonOption = None) -> None:
    """List the targets, their instruction and precisions, and whether this machine can run them."""
    check_output_file("--json", json)
    found = [target for target in map(_load, target_names()) if target is not None]
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("target", "instruction", "precisions", "runs here", "description"):
        table.add_column(column, overflow="fold")
    for target in found:
        here = "no" if missing_features(target) else "yes"
        table.add_row(target.name, target.instruction, " ".join(target.precisions), here, target.description)
    stdout().print(table)
    rows = [{**dataclasses.asdict(target), "missing_features": missing_features(target)} for target in found]
    write_json(json, rows)


def _load(name: str) -> Target | None:
    """The target, or None for ``host`` on a machine that nothing can be compiled for."""
    try:
        return load_target(name)
    except MpqError:
        if name == "host":
            return None
        raise
