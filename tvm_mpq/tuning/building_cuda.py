"""Build one tile of one spec for a GPU: runs in a worker process that NVIDIA's runtime, or a stand-in, is loaded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm_mpq.cuda.nvcc import Resources, best_code
from tvm_mpq.cuda_check.limits import LIMITS
from tvm_mpq.cuda_check.occupancy import occupancy
from tvm_mpq.errors import MpqError
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.linker import Linking
from tvm_mpq.target import architecture
from tvm_mpq.tuning.record import tile_from_json


def build_cuda_tile(
    spec: str, tile: str, target: dict[str, Any], architectures: Sequence[str], nvcc: str, path: str
) -> list[tuple[list[int], str]]:
    """Compile the kernel to ``path`` as the function ``main``; returns each parameter's shape and dtype.

    Arguments are as those of :func:`~tvm_mpq.tuning.building.build_tile`, with what ``nvcc`` makes code for. Raises
    MpqError for a tile that is not worth measuring (:func:`why_unfit`), but for the default one, which all others are
    compared with.
    """
    import tvm

    from tvm_mpq.cuda.compiling import compile_sources_with
    from tvm_mpq.cuda.source import BUILD_CONFIG

    key, decisions = KernelSpec.from_json(spec), tile_from_json(tile)
    function = key.with_tile(decisions).schedule(decisions)
    found: list[Resources] = []

    def compile_source(source: str) -> bytes:
        code, resources = best_code(source, architectures, nvcc)
        found.append(resources)
        return code

    compile_sources_with(compile_source)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        built = tvm.tirx.build(module, target=tvm.target.Target(target))
    if decisions != key.faster().default_tile():
        for resources in found:
            reason = why_unfit(resources, getattr(decisions, "threads", 0), architectures)
            if reason:
                raise MpqError(reason)
    built.export_library(path, fcompile=Linking(architecture(target["host"]["mtriple"])))
    return [([int(extent) for extent in p.shape], str(p.dtype)) for p in function.params]


def why_unfit(resources: Resources, threads: int, architectures: Sequence[str]) -> str:
    """Why code of such ``resources`` in blocks of ``threads`` is slow or does not start; empty where nothing says so.

    Architectures whose limits are not known are taken to hold what ``nvcc`` compiles.
    """
    if resources.spilled:
        return f"{resources.spilled} bytes of registers are kept in memory"
    for name in architectures:
        limits = LIMITS.get(int(name.removeprefix("sm_")))
        if (
            limits is not None
            and not occupancy(limits, threads, resources.registers, resources.shared).blocks
        ):
            return (
                f"no block of {threads} threads with {resources.registers} registers each and {resources.shared} "
                f"bytes of shared memory fits {name}"
            )
    return ""
