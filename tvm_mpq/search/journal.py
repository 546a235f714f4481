"""Measured plans on disk: a search that was interrupted measures none of them twice.

The file has a line of JSON for each plan, behind a first line with the key of everything that the losses depend on. A
search is deterministic given what it measures, so running it again with its journal goes on where it was.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.evaluate import SampleLosses

SCHEMA_VERSION = 1
_FIELDS = ("losses", "correct", "divergence")


@dataclass
class Journal:
    """Losses by plan; ``path`` is None for a journal in memory. Made by :meth:`open`."""

    path: Path | None
    known: dict[str, SampleLosses] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, key: str) -> Journal:
        """The journal at ``path``, with what it holds if that was written under the same ``key``; else a new one.

        Raises MpqError where the file cannot be read or written.
        """
        journal = cls(path)
        if path is None:
            return journal
        head = json.dumps({"schema_version": SCHEMA_VERSION, "key": key})
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            if not lines or lines[0] != head:
                path.write_text(head + "\n", encoding="utf-8")
                return journal
        except (OSError, UnicodeDecodeError) as error:
            raise MpqError(f"cannot use the journal {path}: {error}") from None
        for line in lines[1:]:
            try:
                raw = json.loads(line)
                journal.known[raw["plan"]] = SampleLosses(*(_array(raw[name]) for name in _FIELDS))
            except (ValueError, TypeError, KeyError):
                # The line that was being written when the search was killed.
                continue
        return journal

    def add(self, plan: str, losses: SampleLosses) -> None:
        """Keep the ``losses`` of ``plan``, whatever text names it."""
        self.known[plan] = losses
        if self.path is None:
            return
        arrays = {name: getattr(losses, name) for name in _FIELDS}
        line = json.dumps({"plan": plan} | {k: None if v is None else v.tolist() for k, v in arrays.items()})
        with open(self.path, "a", encoding="utf-8") as stream:
            # The line before may have been cut short: this one begins on its own.
            stream.write(f"\n{line}\n")
            stream.flush()
            os.fsync(stream.fileno())


def _array(values: list[float] | None) -> Any:
    return None if values is None else np.array(values, np.float64)
