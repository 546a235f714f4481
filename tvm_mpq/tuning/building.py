"""Build one tile of one spec into a shared library: runs in a worker process."""

from __future__ import annotations

from typing import Any

from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.linker import Linking
from tvm_mpq.target import architecture
from tvm_mpq.transform.small_buffers import PIPELINE
from tvm_mpq.tuning.record import tile_from_json


def build_tile(spec: str, tile: str, target: dict[str, Any], path: str) -> list[tuple[list[int], str]]:
    """Compile the kernel to ``path`` as the function ``main``; returns each parameter's shape and dtype.

    ``spec`` and ``tile`` are JSON texts, ``target`` the fields of a TVM target.
    """
    import tvm

    decisions = tile_from_json(tile)
    function = KernelSpec.from_json(spec).with_tile(decisions).schedule(decisions)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = tvm.tirx.build(module, target=tvm.target.Target(target), pipeline=PIPELINE)
    built.export_library(path, fcompile=Linking(architecture(target["mtriple"])))
    return [([int(extent) for extent in p.shape], str(p.dtype)) for p in function.params]
