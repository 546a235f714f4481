"""Measured kernel times on disk, shared by all networks and runs: one JSON file for each machine and number of threads.

A kernel is named by the SHA-256 of its scheduled TIR's text. Everything else that its time depends on (processor,
target, versions, threads) names the file, so that nothing measured elsewhere is ever read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm import IRModule
from tvm.tirx import PrimFunc

from tvm_mpq.cpu import cpu_name
from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256, user_cache, write_beside
from tvm_mpq.target import Target
from tvm_mpq.versions import versions

SCHEMA_VERSION = 1


def kernel_keys(lowered: IRModule) -> dict[str, str]:
    """The key of every kernel of a lowered module by its name there."""
    return {
        variable.name_hint: sha256(function.without_attr("global_symbol").script().encode())
        for variable, function in lowered.functions_items()
        if isinstance(function, PrimFunc)
    }


def default_cache() -> Path:
    """The folder for measurements in the user's cache folder."""
    return user_cache("costs")


@dataclass
class KernelTimes:
    """``kernels`` are seconds of a call by key; ``networks`` seconds of a whole run by the key of all its calls.

    ``path`` is None for times that are kept in memory only.
    """

    path: Path | None
    environment: Mapping[str, Any]
    kernels: dict[str, float] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, target: Target, threads: int, cpu: str = "") -> KernelTimes:
        """The times measured before for ``target``; empty where there are none or no ``folder``.

        They are of this machine's processor, or of devices with the processor ``cpu``.
        Raises MpqError for a file that is not what :meth:`save` wrote.
        """
        environment = {
            "schema_version": SCHEMA_VERSION,
            "cpu": cpu or cpu_name(),
            "target": target.tvm_dict(),
            "threads": threads,
            "versions": versions(),
        }
        if folder is None:
            return cls(None, environment)
        name = sha256(json.dumps(environment, sort_keys=True).encode())[:16]
        times = cls(folder / f"{name}.json", environment)
        times._read()
        return times

    def save(self) -> None:
        """Write the times, with what another process wrote meanwhile. Raises MpqError if that cannot be done."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MpqError(
                f"cannot make the folder {self.path.parent} for measured costs: {error.strerror}"
            ) from None
        self._read()
        content = {
            "environment": self.environment,
            "kernels": dict(sorted(self.kernels.items())),
            "networks": dict(sorted(self.networks.items())),
        }
        write_beside(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def _read(self) -> None:
        """Add what is on disk; what is here already is newer."""
        if self.path is None or not self.path.exists():
            return
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            self.kernels = {**_seconds(raw["kernels"]), **self.kernels}
            self.networks = {**_seconds(raw["networks"]), **self.networks}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise MpqError(f"the measured costs in {self.path} are damaged; delete the file") from None


def _seconds(raw: Mapping[str, Any]) -> dict[str, float]:
    values = {str(key): float(value) for key, value in raw.items()}
    if not all(0.0 <= value < float("inf") for value in values.values()):
        raise ValueError("a time is not a number of seconds")
    return values
