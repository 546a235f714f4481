"""Tuning logs: a folder a target, in it files of one record a line, merged by concatenation.

    tuning_logs/x86-64-v3/amd-epyc.jsonl

Lines are appended after each measured batch and forced to the disk, so that a killed run loses one batch at most.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from tvm_mpq.errors import MpqError
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.target import Target
from tvm_mpq.tuning.record import TuningRecord

NOISE = 1.02
"""A tile replaces the default where it was at least this many times as fast."""


@dataclass
class TuningLog:
    """Records of one target. ``notes`` say what was read and left out."""

    records: list[TuningRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> TuningLog:
        """Every ``*.jsonl`` of ``folder``; empty where there is no such folder. Raises MpqError if unreadable."""
        log = cls()
        for path in sorted(folder.glob("*.jsonl")):
            log._read_file(path)
        return log

    def _read_file(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise MpqError(f"cannot read the tuning log {path}: {error}") from None
        outdated = 0
        for number, line in enumerate(lines, 1):
            try:
                record = TuningRecord.from_line(line)
            except ValueError as error:
                torn = number == len(lines) and not line.endswith("\n")
                what = "is torn, as by a killed run" if torn else f"is {error}"
                self.notes.append(f"{path}: line {number} {what}; it is left out")
                continue
            if record is None:
                outdated += 1
            else:
                self.records.append(record)
        if outdated:
            self.notes.append(f"{path}: {outdated} records are of other versions of the kernels and left out")

    def of(self, spec: KernelSpec, threads: int) -> list[TuningRecord]:
        """The records of a key with a number of threads."""
        return [record for record in self.records if record.spec == spec and record.threads == threads]

    def best(self, threads: int, cpu: str | None = None) -> dict[KernelSpec, Tile]:
        """The tile to use for each key whose search was finished with ``threads`` threads; it may be the default one.

        Records of the processor ``cpu`` go before those of others.
        """
        finals: dict[KernelSpec, list[TuningRecord]] = defaultdict(list)
        for record in self.records:
            if record.stage == "final" and record.threads == threads:
                finals[record.spec].append(record)
        return {
            spec: max(records, key=lambda record: (record.cpu == cpu, record.speedup)).tile
            for spec, records in finals.items()
        }


def log_folder(root: Path, target: Target) -> Path:
    """Where under ``root`` the logs of ``target`` are: named by what its code may use, which ``host`` shares."""
    if target.gpu is not None:
        return root / "-".join(target.gpu.architectures)
    return root / "-".join([target.mcpu, *(attribute.lstrip("+") for attribute in target.mattr)])


def shipped_logs() -> Path:
    """The folder of the logs that come with tvm_mpq."""
    return Path(str(resources.files("tvm_mpq") / "tuning_logs"))


def log_file(folder: Path, cpu: str) -> Path:
    """The file of ``folder`` for records made on the processor ``cpu``."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-") + ".jsonl")


def append(path: Path, records: Iterable[TuningRecord]) -> None:
    """Add ``records`` to the file ``path``, on the disk when this returns. Raises MpqError if that cannot be."""
    content = "".join(record.to_line() for record in records).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    content = b"\n" + content  # the line that a killed run tore
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise MpqError(f"cannot write the tuning log {path}: {error.strerror}") from None
