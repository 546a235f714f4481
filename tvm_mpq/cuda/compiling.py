"""TVM's build for GPUs with machine code inside: for processes that NVIDIA's runtime, or a stand-in, is loaded in."""

from __future__ import annotations

from collections.abc import Callable

import tvm
import tvm_ffi

from tvm_mpq.errors import MpqError


def compile_sources_with(compile_source: Callable[[str], bytes]) -> None:
    """From now on TVM hands its CUDA source to ``compile_source``, whose MpqErrors come through as themselves.

    Raises MpqError where TVM's CUDA runtime is not loaded: it would leave source in the library instead.
    """
    if tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        raise MpqError(
            "TVM's CUDA runtime (libtvm_runtime_cuda.so) cannot be loaded: install apache-tvm anew"
        )
    # TVM would hand an error of its callback on as a RuntimeError.
    tvm_ffi.register_error("MpqError", MpqError)
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_source, override=True)
