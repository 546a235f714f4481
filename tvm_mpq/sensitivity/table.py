"""The result of the analysis: for each operator and candidate precision, the estimated change of the loss.

The file is JSON::

    {
      "schema_version": 1,
      "model_sha256": "…", "data_sha256": "…",     what it was computed from
      "loss": "cross-entropy", "base_loss": 0.56,  the loss and its fp32 mean over the samples
      "operators": [{"name": …, "kind": …, "weights": elements}, …]   every operator, in the network's order
      "entries": [{"operator": …, "precision": "w4a8", "mean": …, "stderr": …, …}, …]
    }

An entry's fields are those of :class:`Sensitivity`. An operator without an entry for a precision cannot have it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Sensitivity:
    """The change of the loss when one operator alone gets one precision; in the loss's unit, averaged over samples.

    With g = ∂loss/∂(operator's output) in fp32 and δ = output of the quantized operator on the fp32 input − fp32
    output. The sum is over the elements of one sample, E the mean over samples.
    """

    mean: float
    """E⟨g, δ⟩: the signed first-order change; below zero, quantizing lowers the loss."""
    stderr: float
    """The standard error of ``mean`` over the samples; infinite for a single one."""
    input_part: float
    """E⟨g, δ⟩ with quantized input and fp32 weights."""
    weight_part: float
    """What quantizing the weights adds on the quantized input: ``mean`` − ``input_part``."""
    second_order: float
    """½ E⟨g, δ⟩²: the curvature along δ where the loss is a negative log likelihood (empirical Fisher); ≥ 0."""
    noise: float
    """E|δ|²: the squared error of the output, without the loss."""
    samples: int
    """The number of samples behind the means."""
    measured: float | None = None
    """The mean change of the loss of the compiled network with only this operator quantized; None where not asked."""
    measured_stderr: float | None = None
    """The standard error of ``measured``."""

    def __post_init__(self) -> None:
        if self.samples < 1 or not math.isfinite(self.mean) or not self.second_order >= 0.0:
            raise ValueError(f"not a sensitivity: {self}")


@dataclass(frozen=True)
class OperatorInfo:
    """An operator of the analysed network; ``weights`` is the number of elements of its weight, 0 where it has none."""

    name: str
    kind: str
    weights: int


@dataclass(frozen=True)
class SensitivityTable:
    """Everything that the search reads about a network's loss; ``entries`` by (operator, precision name)."""

    model_sha256: str
    data_sha256: str
    loss: str
    base_loss: float
    operators: tuple[OperatorInfo, ...]
    entries: Mapping[tuple[str, str], Sensitivity] = field(default_factory=dict)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The names of the precisions that some operator has an entry for, in the order of the entries."""
        return tuple(dict.fromkeys(precision for _, precision in self.entries))

    def to_json(self) -> str:
        """The table as JSON text, one line an operator and one line an entry."""
        head = {
            "schema_version": SCHEMA_VERSION,
            "model_sha256": self.model_sha256,
            "data_sha256": self.data_sha256,
            "loss": self.loss,
            "base_loss": self.base_loss,
        }
        lines = ["{", *(f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items())]
        entries = [
            {"operator": operator, "precision": precision, **_finite(asdict(entry))}
            for (operator, precision), entry in self.entries.items()
        ]
        lines += ['  "operators": [', ",\n".join(f"    {_line(asdict(o))}" for o in self.operators), "  ],"]
        lines += ['  "entries": [', ",\n".join(f"    {_line(entry)}" for entry in entries), "  ]", "}", ""]
        return "\n".join(lines)

    @classmethod
    def from_json(cls, text: str, source: str = "sensitivity table") -> SensitivityTable:
        """Read what :meth:`to_json` wrote; raises MpqError that names ``source`` and what is wrong with it."""
        try:
            raw = json.loads(text)
            version = raw["schema_version"]
            if version != SCHEMA_VERSION:
                raise MpqError(
                    f"{source} has schema version {version!r}; this tvm_mpq reads {SCHEMA_VERSION}"
                )
            entries = {}
            for item in raw["entries"]:
                values = {key: item[key] for key in (f.name for f in fields(Sensitivity)) if key in item}
                if values["stderr"] is None:
                    values["stderr"] = math.inf
                entries[item["operator"], item["precision"]] = Sensitivity(**values)
            operators = tuple(OperatorInfo(**item) for item in raw["operators"])
            head = {key: raw[key] for key in ("model_sha256", "data_sha256", "loss", "base_loss")}
        except (ValueError, TypeError, KeyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise MpqError(f"{source} is not a sensitivity table: {reason}") from None
        return cls(**head, operators=operators, entries=entries)

    def save(self, path: str | Path) -> None:
        """Write the table to ``path``, beside it first and then renamed."""
        write_beside(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> SensitivityTable:
        """Read a file that :meth:`save` wrote; raises MpqError when it cannot be read or is no such table."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MpqError(f"cannot read the sensitivity table {path}: {error}") from None
        return cls.from_json(text, str(path))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: the standard error of a single sample is written as null."""
    return values | {"stderr": None} if math.isinf(values["stderr"]) else values


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False)
