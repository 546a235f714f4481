"""From parsed JSON to frozen dataclasses, every type checked: a package may come from anywhere."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from tvm_mpq.errors import MpqError

T = TypeVar("T")


def decode(cls: type[T], raw: object, where: str) -> T:
    """``raw`` (of ``json.loads``) as the dataclass ``cls``; raises MpqError naming the field at fault.

    Fields may be str, int, float, Any, another dataclass, ``tuple[X, ...]``, ``dict[str, X]`` or
    ``X | None``. Missing and unknown fields are errors.
    """
    if not isinstance(raw, dict):
        raise MpqError(f"{where} must be an object, not {_short(raw)}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in raw:
        if key not in names:
            raise MpqError(f"{where} has an unknown field {key!r}")
    values = {}
    for name in names:
        if name not in raw:
            raise MpqError(f"{where} lacks the field {name!r}")
        values[name] = _value(hints[name], raw[name], f"{where}: {name}")
    return cls(**values)


def _value(hint: Any, raw: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return raw
    if origin in (typing.Union, types.UnionType):
        (inner,) = [a for a in arguments if a is not type(None)]
        return None if raw is None else _value(inner, raw, where)
    if origin is tuple and isinstance(raw, list):
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if origin is dict and isinstance(raw, dict):
        return {key: _value(arguments[1], item, f"{where}[{key!r}]") for key, item in raw.items()}
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), raw, where)
    # bool is an int to isinstance, but true is no number of bytes.
    if hint in (str, int) and type(raw) is hint:
        return raw
    if hint is float and type(raw) in (int, float):
        return float(raw)
    raise MpqError(f"{where} must be {getattr(hint, '__name__', hint)}, not {_short(raw)}")


def _short(raw: object) -> str:
    text = repr(raw)
    return text if len(text) <= 40 else text[:37] + "..."
