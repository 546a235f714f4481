"""Fields of a TOML file by name and kind; what is wrong with one is an MpqError that names file and field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tvm_mpq.errors import MpqError


def only(raw: Mapping[str, Any], known: set[str], source: str) -> None:
    """Raise MpqError for a field that is not ``known``."""
    for key in raw:
        if key not in known:
            raise MpqError(f"{source}: unknown field {key!r}; known are {', '.join(sorted(known))}")


def table(raw: Any, source: str) -> dict[str, Any]:
    """``raw`` if it is a table."""
    if not isinstance(raw, dict):
        raise MpqError(f"{source} must be a table")
    return raw


def text(raw: Mapping[str, Any], key: str, source: str) -> str:
    """A text that is not empty."""
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise MpqError(f"{source}: the field {key!r} must be a text, not {value!r}")
    return value


def texts(raw: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    """A list of texts."""
    value = raw.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise MpqError(f"{source}: the field {key!r} must be a list of texts, not {value!r}")
    return tuple(value)


def numbers(raw: Mapping[str, Any], names: list[str], source: str) -> dict[str, float]:
    """The numbers of these ``names``, all above 0."""
    for name in names:
        value: Any = raw.get(name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise MpqError(f"{source}: {name!r} must be a number above 0, not {value!r}")
    return {name: float(raw[name]) for name in names}
