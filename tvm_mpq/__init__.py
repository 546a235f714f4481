"""tvm_mpq: mixed-precision compilation of ONNX networks with Apache TVM.

The public names; each is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_mpq.compiler import compile_model
    from tvm_mpq.dataset import Preprocess, open_dataset
    from tvm_mpq.errors import MpqError
    from tvm_mpq.plan import PrecisionPlan
    from tvm_mpq.precision import Precision
    from tvm_mpq.runtime.harness import benchmark
    from tvm_mpq.runtime.package import Package
    from tvm_mpq.runtime.session import Session
    from tvm_mpq.target import load_target, target_names

_HOMES = {
    "MpqError": "errors",
    "Package": "runtime.package",
    "Precision": "precision",
    "PrecisionPlan": "plan",
    "Preprocess": "dataset",
    "Session": "runtime.session",
    "benchmark": "runtime.harness",
    "compile_model": "compiler",
    "load_target": "target",
    "open_dataset": "dataset",
    "target_names": "target",
}
__all__ = [
    "MpqError",
    "Package",
    "Precision",
    "PrecisionPlan",
    "Preprocess",
    "Session",
    "benchmark",
    "compile_model",
    "load_target",
    "open_dataset",
    "target_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
