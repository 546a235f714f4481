"""``tvm-mpq targets``: what can be compiled for."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from tvm_mpq.cli.console import stdout, write_json
from tvm_mpq.cli.options import JsonOption, check_output_file
from tvm_mpq.errors import MpqError
from tvm_mpq.linker import find_linker
from tvm_mpq.target import Target, load_target, missing_features, target_names


def targets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this target, or the file of that name.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """List the targets, their instruction and precisions, and whether this machine can run them; or print one."""
    check_output_file("--json", json)
    if name is not None:
        target = load_target(name)
        stdout().print(_one(target))
        write_json(json, _row(target))
        return
    found = [target for target in map(_load, target_names()) if target is not None]
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("target", "instruction", "precisions", "runs here", "description"):
        table.add_column(column, overflow="fold")
    for target in found:
        here = "no" if missing_features(target) else "yes"
        table.add_row(target.name, target.instruction, " ".join(target.precisions), here, target.description)
    stdout().print(table)
    write_json(json, [_row(target) for target in found])


def _row(target: Target) -> dict[str, object]:
    return {**dataclasses.asdict(target), "missing_features": missing_features(target)}


def _one(target: Target) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column("field")
    table.add_column("value", overflow="fold")
    missing = missing_features(target)
    rows = {
        "name": target.name,
        "description": target.description,
        "instruction": target.instruction,
        "precisions": " ".join(target.precisions),
        "features": " ".join(target.features),
        "runs here": f"no: lacks {' '.join(missing)}" if missing else "yes",
        "tvm target": " ".join(f"{key}={value}" for key, value in target.tvm_dict().items()),
        "linker": _linker(target),
    }
    if target.device is not None:
        rows["rpc key"] = target.device.rpc_key
        rows["emulator"] = f"QEMU's {target.device.emulator}" if target.device.emulator else "none"
    if target.roofline is not None:
        roofline = dataclasses.asdict(target.roofline)
        rows["roofline"] = ", ".join(f"{key} {value:g}" for key, value in roofline.items())
    for field, value in rows.items():
        table.add_row(field, value)
    return table


def _linker(target: Target) -> str:
    try:
        return " ".join(find_linker(target.architecture))
    except MpqError as error:
        return str(error)


def _load(name: str) -> Target | None:
    """The target, or None for ``host`` on a machine that nothing can be compiled for."""
    try:
        return load_target(name)
    except MpqError:
        if name == "host":
            return None
        raise
