"""Weighted kernels for GPUs with data and what NumPy's integers say that they must write; built and run together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from cuda_texts import require_compiler
from emulated_cases import Case, multiply_groups
from reference import convolve, quantized_convolution

from tvm_mpq.cuda.source import BUILD_CONFIG
from tvm_mpq.cuda_check.device import emulated_device
from tvm_mpq.cuda_check.emulator import Check
from tvm_mpq.cuda_check.network import on_this_host
from tvm_mpq.kernels.cuda.spelling import register
from tvm_mpq.kernels.neon import OFFSET
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.half import to_half
from tvm_mpq.quantization.packing import pack_factors
from tvm_mpq.target import load_target
from tvm_mpq.transform.weight_layout import weight_layout


def gpu_case(spec: KernelSpec, seed: int, zeros: tuple[int, int] = (117, 3)) -> Case:
    """A kernel with weights; of activations and codes half are extreme. Floats are small integers: sums are exact."""
    shape, rng = spec.shape, np.random.default_rng(seed)
    image = (shape.batch, shape.height, shape.width, shape.in_channels)
    filters = (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)
    layout = weight_layout(spec)
    if spec.in_dtype == "float32":
        x, w = rng.integers(-9, 10, image), rng.integers(-9, 10, filters)
        bias = rng.integers(-50, 50, shape.out_channels)
        sums = (convolve(x, w, shape) + bias).reshape(shape.rows, -1).astype(np.float32)
        weights = w.astype("float32" if spec.weight_dtype == "bfloat16" else spec.weight_dtype)
        if spec.weight_dtype in ("float16", "bfloat16"):
            weights = to_half(w.astype(np.float32), spec.weight_dtype)
        each = [bias.astype(np.float32)]
        if spec.weight_dtype == "int8":
            each.append(np.ones(shape.out_channels, np.float32))
        arguments = (_rows(x.astype(np.float32)), layout.pack(weights), *map(layout.pack_each, each))
        return Case(spec.schedule(), arguments, sums)
    q = np.where(rng.random(image) < 0.5, rng.choice([0, 255], image), rng.integers(0, 256, image))
    most = 2 ** (spec.weight_bits - 1) - 1
    codes = np.where(
        rng.random(filters) < 0.5, rng.choice([-most, most], filters), rng.integers(-most, most + 1, filters)
    )
    q, codes = q.astype(np.uint8), codes.astype(np.int8)
    weights = [layout.pack(codes)]
    if spec.weight_group:
        size = (shape.out_channels, shape.kernel[0], -(-shape.run // spec.weight_group))
        factors = rng.integers(1, 127 // most + 1, size).astype(np.int8)
        multiplied = multiply_groups(codes, factors, spec.weight_group)
        weights = [layout.pack(multiplied)]
        if spec.row.multiplied:
            weights = [layout.pack(codes), pack_factors(factors, shape.groups, spec.row.lanes)]
        codes = multiplied
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    multiplier = (rng.random(shape.out_channels) / most / np.sqrt(codes[0].size)).astype(np.float32)
    multiplier += np.float32(1e-6)
    offset = OFFSET if spec.family != "depthwise" or spec.dot_taps else 0
    folded = fold_zero_point(bias, codes, zeros[0] - offset)
    constants = [*weights, layout.pack_each(folded), layout.pack_each(multiplier)]
    arguments = (_rows(q), *constants, np.array(zeros, np.int32))
    if spec.out.dtype == "uint8":
        expected = quantized_convolution(q, codes, bias, multiplier, zeros, shape)
    else:
        sums = convolve(q.astype(np.int64) - zeros[0], codes.astype(np.int64), shape) + bias
        expected = sums.reshape(shape.rows, -1).astype(np.int32).astype(np.float32) * multiplier
    return Case(spec.schedule(), arguments, expected)


def run_on_gpu(cases: Mapping[str, Case], target: str = "cuda-sm80") -> dict[str, np.ndarray]:
    """Every case's output, all kernels compiled as one module, every launch checked."""
    require_compiler()
    register()
    names = {name: f"kernel{place}" for place, name in enumerate(cases)}
    functions = {names[n]: case.function.with_attr("global_symbol", names[n]) for n, case in cases.items()}
    with emulated_device(Check.ALWAYS), tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        library = tvm.compile(tvm.IRModule(functions), on_this_host(load_target(target)).tvm_target())
    results = {}
    for name, case in cases.items():
        out = np.full(case.expected.shape, 77, case.expected.dtype)
        tensors = [
            tvm.runtime.tensor(np.ascontiguousarray(array), tvm.cuda()) for array in (*case.arguments, out)
        ]
        library[names[name]](*tensors)
        results[name] = tensors[-1].numpy()
    return results


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])
