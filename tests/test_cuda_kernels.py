"""GPU kernels of every family and precision against NumPy's integers, bit for bit, on the emulated device."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_cases import compiled, gpu_case, machine_code, run_on_gpu
from emulated_cases import SPECS, Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_integer_kernels import shapes
from tvm.script import tirx as T  # noqa: N812

from tvm_mpq.cuda_check import device
from tvm_mpq.cuda_check.emulator import Emulator, KernelFault
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.cuda.products import float_products, half_products
from tvm_mpq.kernels.cuda.tile import CudaTile
from tvm_mpq.kernels.spec import KernelSpec

EXAMPLES = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TOGETHER = 8
"""Kernels that are compiled as one module: the compiler's start costs more than a kernel."""


def agree(cases: dict[str, Case]) -> None:
    for name, result in run_on_gpu(cases).items():
        np.testing.assert_array_equal(result, cases[name].expected, err_msg=name, strict=True)


def test_kernels_of_every_family_and_precision() -> None:
    """One of each that differs in more than its shape."""
    chosen: dict[tuple[object, ...], tuple[str, KernelSpec]] = {}
    for name, spec in SPECS.items():
        kind = (spec.family, spec.in_dtype, spec.weight_dtype, spec.out.dtype, spec.weight_bits)
        if spec.family in ("conv2d", "depthwise", "matmul") and not spec.weight_group:
            chosen.setdefault(kind, (name, replace(spec, instruction="cuda")))
    cases = {name: gpu_case(spec, 1) for name, spec in chosen.values()}
    assert len(cases) >= 10
    agree(cases)
    assert all(len(np.unique(case.expected)) > 10 for case in cases.values())


@EXAMPLES
@given(st.lists(shapes(), min_size=TOGETHER, max_size=TOGETHER), st.data())
def test_convolutions(drawn: list[ConvolutionShape], data: st.DataObject) -> None:
    cases = {}
    for place, shape in enumerate(drawn):
        bits, zeros = data.draw(st.integers(2, 8)), data.draw(st.tuples(*[st.integers(0, 255)] * 2))
        group = data.draw(st.sampled_from([0, 8, 12, 32]))
        spec = KernelSpec("conv2d", shape, "uint8", Output("uint8"), "cuda", bits, group if bits < 8 else 0)
        cases[f"{place}: {spec.name}"] = gpu_case(spec, place, zeros)
    agree(cases)


@EXAMPLES
@given(st.lists(shapes(depthwise=True), min_size=TOGETHER, max_size=TOGETHER), st.data())
def test_depthwise(drawn: list[ConvolutionShape], data: st.DataObject) -> None:
    cases = {}
    for place, shape in enumerate(drawn):
        spec = KernelSpec("depthwise", shape, "uint8", Output("uint8"), "cuda")
        cases[f"{place}: {spec.name}"] = gpu_case(
            spec, place, data.draw(st.tuples(*[st.integers(0, 255)] * 2))
        )
    agree(cases)


@EXAMPLES
@given(st.lists(st.tuples(*[st.integers(1, 70)] * 3), min_size=TOGETHER, max_size=TOGETHER), st.data())
def test_matrix_multiplications(drawn: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Of few rows, by dp4a, and of more; to 8 bits and to float."""
    cases = {}
    for place, (rows, channels, outputs) in enumerate(drawn):
        rows = data.draw(st.integers(1, 4)) if place % 2 else rows
        shape = ConvolutionShape(rows, 1, 1, channels, outputs)
        out = Output(data.draw(st.sampled_from(["uint8", "float32"])))
        bits = data.draw(st.integers(2, 8))
        group = data.draw(st.sampled_from([0, 32])) if bits < 8 else 0
        spec = KernelSpec("matmul", shape, "uint8", out, "cuda", bits, group)
        cases[f"{place}: {spec.name}"] = gpu_case(spec, place)
    agree(cases)


@EXAMPLES
@given(st.lists(shapes(), min_size=TOGETHER, max_size=TOGETHER))
def test_floats(drawn: list[ConvolutionShape]) -> None:
    """Sums of small integers, which floats of 16 and 32 bits hold exactly in any order."""
    cases = {}
    for place, shape in enumerate(drawn):
        dtype = ("float32", "float16", "bfloat16", "int8")[place % 4]
        spec = KernelSpec("conv2d", shape, "float32", Output("float32"), "cuda", weight_dtype=dtype)
        cases[f"{place}: {spec.name}"] = gpu_case(spec, place)
    agree(cases)


@EXAMPLES
@given(st.lists(shapes(), min_size=TOGETHER, max_size=TOGETHER), st.data())
def test_codes_by_halves(drawn: list[ConvolutionShape], data: st.DataObject) -> None:
    """Codes of each width, in groups that kernels multiply and that they get multiplied, by half floats."""
    cases = {}
    for place, shape in enumerate(drawn):
        bits = (8, 4, 3, 6, 4, 2, 5, 7)[place]
        group = data.draw(st.sampled_from([0, 8, 16, 32])) if bits < 8 else 0
        spec = KernelSpec(
            *("conv2d", shape, "float32", Output("float32"), "cuda", bits, group),
            weight_dtype="int8",
            halves=True,
        )
        assert spec.row.name == "hmma"
        cases[f"{place}: {spec.name}"] = gpu_case(spec, place)
    agree(cases)


def test_codes_become_halves_in_registers() -> None:
    """Two subtracted by one instruction, loaded packed and with nothing converted, for tensor cores.

    Products of activations are on tensor cores too.
    """
    shape = ConvolutionShape(1, 14, 14, 64, 64, (3, 3), padding=(1, 1, 1, 1))
    specs = {
        f"w{bits}g{group}": KernelSpec(
            *("conv2d", shape, "float32", Output("float32"), "cuda", bits, group),
            weight_dtype="int8",
            halves=True,
        ).schedule()
        for bits, group in ((8, 0), (4, 32))
    }
    kernels = {**specs, "products": half_products(12, 128, 64, 128)}
    for name, codes in machine_code(kernels, ["sm_80"]).items():
        assert len(codes) == 1
        for code in codes:
            kinds = code.instructions
            assert kinds["HMMA"] > 0, name
            assert code.spills == 0
            if name == "products":
                continue
            assert kinds["HADD2"] > 0, name
            assert ("I2F" in kinds) == (name == "w4g32"), "only a group's factor is converted"


@EXAMPLES
@given(st.lists(st.tuples(*[st.integers(1, 70)] * 3), min_size=TOGETHER, max_size=TOGETHER), st.data())
def test_products_of_two_activations(drawn: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """On tensor cores and not, of any extents: small integers, whose products and sums are exact."""
    cases = {}
    for place, (rows, depth, columns) in enumerate(drawn):
        batch, rng = data.draw(st.integers(1, 3)), np.random.default_rng(place)
        # Past the pair's end is another pair: what is read too much would be seen.
        a, b = rng.integers(-9, 10, (batch, rows, depth)), rng.integers(-9, 10, (batch, depth, columns))
        make = (half_products, float_products)[place % 2]
        cases[f"{place}: {batch} of {rows} {depth} {columns}"] = Case(
            make(batch, rows, depth, columns),
            (a.astype(np.float32), b.astype(np.float32)),
            (a @ b).astype(np.float32),
        )
    agree(cases)


def test_one_row_of_halves_on_tensor_cores() -> None:
    """Rows of the fragment that are no rows of the input are staged as zeros, which the check has to see."""
    shape = ConvolutionShape(1, 1, 1, 128, 40)
    spec = KernelSpec("matmul", shape, "float32", Output("float32"), "cuda", weight_dtype="float16")
    agree({"one row": gpu_case(spec, 0)})


def test_without_any_one_of_its_barriers_a_kernel_that_loads_ahead_has_a_race(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before shared memory is written again, before it is multiplied, and before the sums are read; in int4 too."""
    shape = ConvolutionShape(1, 6, 6, 32, 32, (3, 3), padding=(1, 1, 1, 1))
    barriers = 3
    eight = KernelSpec("conv2d", shape, "uint8", Output("uint8"), "cuda")
    four = replace(eight, weight_bits=4, instruction="cuda-int4").by_int4()
    assert four is not None

    def edited(source: str, *arguments: Any) -> Emulator:
        bodies = re.split(r"(?=extern \"C\" __global__)", source)
        for kernel in range(2 * barriers):
            (at,) = (i for i, body in enumerate(bodies) if f" kernel{kernel}_kernel(" in body and "{" in body)
            pieces, place = bodies[at].split("__syncthreads();"), kernel % barriers
            assert len(pieces) == barriers + 1
            bodies[at] = "__syncthreads();".join(pieces[: place + 1]) + "__syncthreads();".join(
                pieces[place + 1 :]
            )
        return Emulator("".join(bodies), *arguments)

    monkeypatch.setattr(device, "Emulator", edited)
    cases = {}
    for spec, depth in ((eight, 1), (four, 4)):
        tile = spec.default_tile()
        assert isinstance(tile, CudaTile)
        for place in range(barriers):
            case = gpu_case(spec, place, tile=replace(tile, depth=depth, ahead=True))
            cases[f"{spec.name} {place}"] = case
    for run in compiled(cases).values():
        with pytest.raises(KernelFault, match=r"^kernel\d_kernel: (race|uninitialized): "):
            run()


def test_what_a_kernel_does_wrong_is_told_through_tvm() -> None:
    @T.prim_func(s_tir=True)
    def careless(a: T.Buffer((8,), "int32"), b: T.Buffer((8,), "int32")) -> None:
        T.func_attr({"tirx.noalias": True})
        for i in T.thread_binding(9, thread="threadIdx.x"):
            with T.sblock("b"):
                v = T.axis.spatial(9, i)
                T.reads()
                T.writes()
                b[v] = a[0]

    case = Case(careless, (np.ones(8, np.int32),), np.ones(8, np.int32))
    with pytest.raises(
        KernelFault, match=r"^kernel0_kernel: out of bounds: .*behind the end of .*\(line \d+: b"
    ):
        run_on_gpu({"careless": case})
