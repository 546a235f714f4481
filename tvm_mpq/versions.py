"""Versions of what a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata

_DISTRIBUTIONS = {"tvm": "apache-tvm", "tvm-ffi": "apache-tvm-ffi", "numpy": "numpy"}


def versions() -> dict[str, str]:
    """Versions of tvm_mpq, TVM, its FFI, NumPy and Python."""
    found = {"tvm_mpq": _version("tvm-mpq")}
    found |= {name: _version(distribution) for name, distribution in _DISTRIBUTIONS.items()}
    return {**found, "python": platform.python_version()}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
