"""The cost table: seconds of each operator at each precision, and of each change of dtype between operators.

The file is JSON::

    {
      "schema_version": 1, "kind": "measured" | "modelled",
      "model_sha256": "…", "target": "host", "cpu": "…", "threads": 1,
      "precisions": ["fp32", "w8a8", …],
      "operators": [{"name": …, "kind": …, "executed": {"w8a8": "w8a8", …}, "seconds": {"w8a8": 1.2e-4, …}}, …],
      "boundaries": [{"producer": …, "reader": …, "to_float": 1e-6, "to_integer": 2e-6}, …],
      "checks": [{"plan": "w8a8", "predicted": 8.1e-3, "measured": 8.5e-3}, …]
    }

``seconds`` of a precision are those of what is executed for it. Conversions of the network's inputs and results belong
to the operators beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import Precision
from tvm_mpq.runtime.decode import decode

SCHEMA_VERSION = 1
MEASURED, MODELLED = "measured", "modelled"


@dataclass(frozen=True)
class OperatorCost:
    """One operator: what is executed, and its seconds in that, for each precision that may be asked."""

    name: str
    kind: str
    executed: dict[str, str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class BoundaryCost:
    """Seconds that it costs when ``producer`` computes in 8 bits and ``reader`` in float, or the other way round.

    ``to_float`` may be below zero: an accumulator that leaves as a float can be quicker than a requantized one.
    """

    producer: str
    reader: str
    to_float: float
    to_integer: float

    def between(self, produced: Precision, read: Precision) -> float:
        """Seconds between a producer executed in ``produced`` and a reader executed in ``read``."""
        if produced.integer_activations == read.integer_activations:
            return 0.0
        return self.to_float if produced.integer_activations else self.to_integer


@dataclass(frozen=True)
class Check:
    """A plan's predicted and measured seconds; ``plan`` is a precision, or says how the plan was made."""

    plan: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted as a multiple of measured."""
        return self.predicted / self.measured


@dataclass(frozen=True)
class CostTable:
    """Latency of one network on one machine, operator by operator; ``kind`` is ``measured`` or ``modelled``."""

    schema_version: int
    kind: str
    model_sha256: str
    target: str
    cpu: str
    threads: int
    precisions: tuple[str, ...]
    operators: tuple[OperatorCost, ...]
    boundaries: tuple[BoundaryCost, ...]
    checks: tuple[Check, ...] = ()

    @cached_property
    def operator_seconds(self) -> Mapping[str, Mapping[str, float]]:
        """Seconds by operator and precision asked."""
        return {operator.name: operator.seconds for operator in self.operators}

    @cached_property
    def boundary_seconds(self) -> Mapping[tuple[str, str], Mapping[tuple[str, str], float]]:
        """Seconds by (producer, reader) and the precisions (asked of the producer, asked of the reader).

        A tensor is converted once for all its readers: the sum over boundaries is an upper bound where two readers of
        one tensor both differ from its producer. :meth:`predict` counts it once.
        """
        executed = {operator.name: _parsed(operator.executed) for operator in self.operators}
        return {
            (boundary.producer, boundary.reader): {
                (p, q): boundary.between(produced, read)
                for p, produced in executed[boundary.producer].items()
                for q, read in executed[boundary.reader].items()
            }
            for boundary in self.boundaries
        }

    def predict(self, plan: PrecisionPlan) -> float:
        """Seconds of the network under ``plan``: operators, and each tensor's conversions once.

        The sum is over what each operator is executed in alone; ``network.executed_plan`` tells what a whole plan
        makes of operators without weights. Raises MpqError for an operator or precision that the table lacks.
        """
        plan.check(self.operator_seconds)
        total = []
        executed: dict[str, Precision] = {}
        for operator in self.operators:
            asked = str(plan[operator.name])
            if asked not in operator.seconds:
                known = ", ".join(operator.seconds)
                raise MpqError(f"the cost table has no {asked} for operator {operator.name!r}, only {known}")
            total.append(operator.seconds[asked])
            executed[operator.name] = Precision.parse(operator.executed[asked])
        conversions: dict[str, float] = {}
        for boundary in self.boundaries:
            seconds = boundary.between(executed[boundary.producer], executed[boundary.reader])
            if seconds and abs(seconds) > abs(conversions.get(boundary.producer, 0.0)):
                conversions[boundary.producer] = seconds
        return math.fsum([*total, *conversions.values()])

    def to_json(self) -> str:
        """The table as JSON text, one line an operator and one a boundary."""
        raw = asdict(self)
        lines = []
        for key, value in raw.items():
            if key in ("operators", "boundaries", "checks") and value:
                rows = ",\n".join(f"    {json.dumps(item, allow_nan=False)}" for item in value)
                lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
            else:
                lines.append(f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, source: str = "cost table") -> CostTable:
        """Read what :meth:`to_json` wrote; raises MpqError that names ``source`` and what is wrong with it."""
        try:
            raw: Any = json.loads(text)
        except (ValueError, RecursionError):
            raise MpqError(f"{source} is not a cost table: it is not valid JSON") from None
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise MpqError(
                f"{source} has cost table version {version!r}; this tvm_mpq reads {SCHEMA_VERSION}"
            )
        table = decode(cls, raw, source)
        names = {operator.name for operator in table.operators}
        for boundary in table.boundaries:
            if not {boundary.producer, boundary.reader} <= names:
                raise MpqError(f"{source} has a boundary of an operator that it does not list")
        return table

    def save(self, path: str | Path) -> None:
        """Write the table to ``path``, beside it first and then renamed."""
        write_beside(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read a file that :meth:`save` wrote; raises MpqError when it cannot be read or is no such table."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MpqError(f"cannot read the cost table {path}: {error}") from None
        return cls.from_json(text, str(path))


def _parsed(executed: Mapping[str, str]) -> dict[str, Precision]:
    return {asked: Precision.parse(name) for asked, name in executed.items()}
