"""ONNX → the canonical Relax module that every pass relies on (``docs/architecture.md``)."""

from tvm_mpq.frontend.importer import import_onnx
from tvm_mpq.frontend.loading import load_onnx
from tvm_mpq.frontend.operators import Operator, io_specs, operators

__all__ = ["Operator", "import_onnx", "io_specs", "load_onnx", "operators"]
