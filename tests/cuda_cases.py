"""Weighted kernels for GPUs with data and what NumPy's integers say that they must write; built and run together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import tvm
from cuda_texts import require_compiler
from emulated_cases import Case, multiply_groups
from reference import convolve, half_extreme, quantized_convolution
from tvm.tirx import PrimFunc

from tvm_mpq.cuda import nvcc
from tvm_mpq.cuda.source import BUILD_CONFIG
from tvm_mpq.cuda_check.device import emulated_device
from tvm_mpq.cuda_check.emulator import Check
from tvm_mpq.cuda_check.machine_code import KernelCode, kernel_codes
from tvm_mpq.cuda_check.network import on_this_host
from tvm_mpq.kernels.cuda.spelling import register
from tvm_mpq.kernels.neon import OFFSET
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.half import to_half
from tvm_mpq.quantization.packing import pack_factors
from tvm_mpq.target import load_target
from tvm_mpq.transform.weight_layout import weight_layout


def gpu_case(
    spec: KernelSpec, seed: int, zeros: tuple[int, int] = (117, 3), tile: Tile | None = None
) -> Case:
    """A kernel with weights; of activations and codes half are extreme. Floats are small integers: sums are exact."""
    shape, rng = spec.shape, np.random.default_rng(seed)
    image = (shape.batch, shape.height, shape.width, shape.in_channels)
    filters = (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)
    layout = weight_layout(spec)
    if spec.in_dtype == "float32":
        x, bias = rng.integers(-9, 10, image), rng.integers(-50, 50, shape.out_channels)
        scale = np.ones(shape.out_channels)
        if spec.weight_dtype == "int8":
            weights, w = _codes(spec, rng, filters)
            scale = rng.choice([0.25, 0.5, 1, 2], shape.out_channels)
        else:
            w = rng.integers(-9, 10, filters)
            weights = [layout.pack(_floats(w, spec.weight_dtype))]
        sums = (convolve(x, w, shape) * scale + bias).reshape(shape.rows, -1).astype(np.float32)
        each = [bias] if spec.weight_dtype != "int8" else [bias, scale]
        constants = [layout.pack_each(values.astype(np.float32)) for values in each]
        return Case(spec.schedule(tile), (_rows(x.astype(np.float32)), *weights, *constants), sums)
    q = half_extreme(rng, 0, 255, image).astype(np.uint8)
    weights, codes = _codes(spec, rng, filters)
    most = 2 ** (spec.weight_bits - 1) - 1
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    multiplier = (rng.random(shape.out_channels) / most / np.sqrt(codes[0].size)).astype(np.float32)
    multiplier += np.float32(1e-6)
    signed = spec.dot_taps if spec.family == "depthwise" else spec.row.activation == "int8"
    offset = OFFSET if signed else 0
    folded = fold_zero_point(bias, codes, zeros[0] - offset)
    constants = [*weights, layout.pack_each(folded), layout.pack_each(multiplier)]
    arguments = (_rows(q), *constants, np.array(zeros, np.int32))
    expected = quantized_convolution(q, codes, bias, multiplier, zeros, shape, spec.out)
    return Case(spec.schedule(tile), arguments, expected)


def _codes(
    spec: KernelSpec, rng: np.random.Generator, filters: tuple[int, ...]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Integer weights as the kernel reads them, its groups' factors with them, and the int8 codes they stand for."""
    layout, most = weight_layout(spec), 2 ** (spec.weight_bits - 1) - 1
    codes = half_extreme(rng, -most, most, filters).astype(np.int8)
    if not spec.weight_group:
        return [layout.pack(codes)], codes
    size = (filters[0], spec.shape.kernel[0], -(-spec.shape.run // spec.weight_group))
    factors = rng.integers(1, 127 // most + 1, size).astype(np.int8)
    multiplied = multiply_groups(codes, factors, spec.weight_group)
    if not spec.row.multiplied:
        return [layout.pack(multiplied)], multiplied
    return [layout.pack(codes), pack_factors(factors, spec.shape.groups, spec.row.lanes)], multiplied


def _floats(values: np.ndarray, dtype: str) -> np.ndarray:
    return values.astype(np.float32) if dtype == "float32" else to_half(values.astype(np.float32), dtype)


def run_on_gpu(cases: Mapping[str, Case], target: str = "cuda-sm80") -> dict[str, np.ndarray]:
    """Every case's output, all kernels compiled as one module, every launch checked."""
    return {name: run() for name, run in compiled(cases, target).items()}


def compiled(cases: Mapping[str, Case], target: str = "cuda-sm80") -> dict[str, Callable[[], np.ndarray]]:
    """For each case what runs its kernel, ``kernel0`` and so on in one module, and gives its output."""
    require_compiler()
    register()
    names = {name: f"kernel{place}" for place, name in enumerate(cases)}
    functions = {names[n]: case.function.with_attr("global_symbol", names[n]) for n, case in cases.items()}
    with emulated_device(Check.ALWAYS), tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        library = tvm.compile(tvm.IRModule(functions), on_this_host(load_target(target)).tvm_target())

    def run(name: str) -> np.ndarray:
        expected = cases[name].expected
        arrays = (*cases[name].arguments, np.full(expected.shape, 77, expected.dtype))
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(array), tvm.cuda()) for array in arrays]
        library[names[name]](*tensors)
        return tensors[-1].numpy()

    return {name: functools.partial(run, name) for name in cases}


def cuda_source(kernels: Mapping[str, PrimFunc]) -> str:
    """Of all ``kernels``, as ``kernel0`` and so on."""
    register()
    functions = {
        f"kernel{place}": kernel.with_attr("global_symbol", f"kernel{place}")
        for place, kernel in enumerate(kernels.values())
    }
    with tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        built = tvm.compile(tvm.IRModule(functions), load_target("cuda-sm80").tvm_target())
    return str(built.mod.imports[0].inspect_source("cuda"))


def machine_code(
    kernels: Mapping[str, PrimFunc], architectures: Sequence[str]
) -> dict[str, list[KernelCode]]:
    """What NVIDIA's compiler makes of each kernel, once for each architecture."""
    missing = [name for name in ("nvcc", "cuobjdump", "nvdisasm") if nvcc.find_tool(name) is None]
    if missing:
        pytest.skip(f"CUDA's tools are not installed: {', '.join(missing)}")
    codes = kernel_codes(nvcc.best_code(cuda_source(kernels), architectures)[0])
    return {
        name: [code for code in codes if code.name == f"kernel{place}_kernel"]
        for place, name in enumerate(kernels)
    }


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])
