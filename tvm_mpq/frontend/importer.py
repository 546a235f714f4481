"""The front door: an ONNX network to a canonical Relax module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import tvm

from tvm_mpq.frontend.emit import emit
from tvm_mpq.frontend.inference import build_graph
from tvm_mpq.frontend.loading import load_onnx, prepare
from tvm_mpq.frontend.normalize import normalize


def import_onnx(
    model: str | Path | onnx.ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> tvm.IRModule:
    """The canonical module (``docs/architecture.md``) of an ONNX file or of a network in memory.

    ``input_shapes`` maps names of inputs with open sizes to their sizes. Raises MpqError for what
    :func:`load_onnx` refuses, and for operators that TVM cannot import.
    """
    fixed = (
        prepare(model, input_shapes) if isinstance(model, onnx.ModelProto) else load_onnx(model, input_shapes)
    )
    graph = build_graph(fixed)
    normalize(graph)
    return emit(graph, [value.name for value in fixed.graph.output])
