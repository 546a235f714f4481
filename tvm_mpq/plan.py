"""A plan: which precision each operator gets. A JSON file with one line an operator, meant to be edited."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside
from tvm_mpq.precision import Precision

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PrecisionPlan:
    """Operator name → precision, in the network's order."""

    operators: Mapping[str, Precision] = field(default_factory=dict)

    @classmethod
    def uniform(cls, names: Iterable[str], precision: Precision) -> PrecisionPlan:
        """The same precision for every operator of ``names``."""
        return cls(dict.fromkeys(names, precision))

    def __getitem__(self, name: str) -> Precision:
        return self.operators[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.operators)

    def __len__(self) -> int:
        return len(self.operators)

    def check(self, names: Iterable[str]) -> None:
        """Raise MpqError unless the plan names exactly the operators ``names`` of a network."""
        known = list(names)
        for name in self.operators:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.0)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise MpqError(f"the plan names operator {name!r}, which the network does not have{hint}")
        missing = [name for name in known if name not in self.operators]
        if missing:
            raise MpqError(
                f"the plan has no line for operator {missing[0]!r} ({len(missing)} of {len(known)} missing)"
            )

    def to_json(self, extra: Mapping[str, object] | None = None) -> str:
        """The plan as JSON text, one line an operator, and a line for each of ``extra``, which reading leaves out."""
        lines = [f"    {json.dumps(name)}: {json.dumps(str(p))}" for name, p in self.operators.items()]
        body = ",\n".join(lines)
        more = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in (extra or {}).items())
        return f'{{\n  "schema_version": {SCHEMA_VERSION},\n{more}  "operators": {{\n{body}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> PrecisionPlan:
        """Read what :meth:`to_json` wrote; raises MpqError that names ``source`` and the line at fault."""
        try:
            raw = json.loads(text, object_pairs_hook=_no_duplicates)
        except ValueError as error:
            raise MpqError(f"{source} is not a valid JSON plan: {error}") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("operators"), dict):
            raise MpqError(f'{source} is not a plan: it needs "schema_version" and "operators"')
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise MpqError(
                f"{source} has plan schema version {version!r}; this tvm_mpq reads {SCHEMA_VERSION}"
            )
        operators = {}
        for name, value in raw["operators"].items():
            if not isinstance(value, str):
                raise MpqError(f'{source}: operator {name!r} needs a precision in quotes, such as "w8a8"')
            try:
                operators[name] = Precision.parse(value)
            except MpqError as error:
                raise MpqError(f"{source}: operator {name!r}: {error}") from None
        return cls(operators)

    def save(self, path: str | Path) -> None:
        """Write the plan to ``path``, beside it first and then renamed."""
        write_beside(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> PrecisionPlan:
        """Read a plan file; raises MpqError when it cannot be read or is not a plan."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MpqError(f"cannot read the plan {path}: {error}") from None
        return cls.from_json(text, str(path))


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key!r} appears twice")
        result[key] = value
    return result
