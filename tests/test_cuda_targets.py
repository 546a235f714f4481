"""Targets with GPUs, what their kernels multiply with, and the roofline model of them, without a compiler."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_networks import attention, mixed, prepared

from tvm_mpq.build import build_passes
from tvm_mpq.cost.measure import measure_costs
from tvm_mpq.cost.modelled import gpu_peaks, model_costs, peaks_of
from tvm_mpq.cost.notes import latency_notes
from tvm_mpq.cost.runs import lower
from tvm_mpq.cost.table import CostTable, OperatorCost
from tvm_mpq.cost.work import kernel_work
from tvm_mpq.cuda.source import cuda_code
from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import STEPS, driver_device
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.cuda.tile import FRAGMENT
from tvm_mpq.kernels.cuda.units import macs_by_unit
from tvm_mpq.kernels.spec import ATTRIBUTE, KernelSpec
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.target import load_target, parse_target, target_names
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.pipeline import Pipeline
from tvm_mpq.transform.weight_layout import weight_layout

GPUS = ("jetson-orin", "jetson-nano-orin", "cuda-sm75", "cuda-sm80", "cuda-sm90")


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_target_says_what_it_is(name: str) -> None:
    target = load_target(name)
    assert name in target_names()
    assert target.gpu is not None
    assert "nvidia-gpu" in target.features
    fields = target.tvm_dict()
    assert fields["kind"] == "cuda"
    assert fields["arch"] == target.gpu.architectures[0]
    assert fields["host"]["mtriple"].startswith("aarch64" if name.startswith("jetson") else "x86_64")
    assert str(target.tvm_target().kind) == "cuda"
    rates = [target.gpu.macs_per_second(step) for step in STEPS]
    imma, hmma, dp4a, imad, ffma = rates
    assert imma == 2 * hmma > 8 * ffma
    assert dp4a == 4 * imad


def test_the_gpu_of_this_machine() -> None:
    if driver_device() is not None:
        pytest.skip("this machine has an NVIDIA GPU")
    assert "host-cuda" not in target_names()
    with pytest.raises(MpqError, match=r"needs an NVIDIA GPU and its driver \(libcuda.so.1\)"):
        load_target("host-cuda")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["sm_87"]', '["8.7"]', "spelled like sm_80"),
        ('["sm_87"]', "[]", "at least one"),
        ("imma = 2048", "imma = 0", "'imma' must be a number above 0"),
        ("imma = 2048", "wgmma = 2048", "unknown field 'wgmma'"),
        ("memory_gbs = 204.8", "", "'memory_gbs' must be a number above 0"),
        ('kind = "cuda"', 'kind = "llvm"', "kind 'llvm' is not supported with 'cuda-int4'; use 'cuda'"),
    ],
)
def test_a_wrong_gpu_table_is_named(old: str, new: str, message: str) -> None:
    from tvm_mpq.target import _FOLDER

    text = (_FOLDER / "jetson-orin.toml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(MpqError, match=message) as error:
        parse_target(text.replace(old, new, 1), "mine.toml")
    assert str(error.value).startswith("mine.toml")


def test_a_processor_has_no_gpu_table() -> None:
    from tvm_mpq.target import _FOLDER

    gpu = (_FOLDER / "jetson-orin.toml").read_text(encoding="utf-8")
    text = (_FOLDER / "haswell.toml").read_text(encoding="utf-8") + gpu[gpu.index("[gpu]") :]
    with pytest.raises(MpqError, match="of kind 'cuda', and no other"):
        parse_target(text, "mine.toml")


@pytest.mark.parametrize("precision", ["w8a8", "fp16", "w4a16", "fp32"])
def test_what_multiplies(precision: str) -> None:
    """Every multiply-accumulate in 8 bits is on tensor cores or dp4a, those of half floats on tensor cores."""
    network, target = prepared(mixed), load_target("cuda-sm80")
    calls = lower(network.mod, network.plan(precision), target).calls
    counts = macs_by_unit(calls)
    total = sum(counts.values())
    assert total == sum(call.macs for call in calls if call.step) > 0
    if precision == "fp32":
        assert counts["plain"] == total
    elif precision in ("fp16", "w4a16"):
        depthwise = sum(call.macs for call in calls if call.step == "ffma")
        assert counts["tensor core"] == total - depthwise
        assert {call.kernel.split("_")[0] for call in calls if call.step == "ffma"} == {"depthwise"}
    else:
        # The depthwise convolution of ten channels is cut into no words of four.
        plain = [call for call in calls if call.step == "imad"]
        assert {call.kernel.split("_")[0] for call in plain} <= {"depthwise"}
        assert counts["tensor core"] > 0


@pytest.mark.parametrize(
    ("precision", "gpu", "executed"),
    [("fp16", True, "fp16"), ("w4g32a16", True, "fp16"), ("w8a8", True, "fp32"), ("fp16", False, "fp32")],
)
def test_products_of_two_activations(precision: str, gpu: bool, executed: str) -> None:
    """Half floats where they are asked for and there are tensor cores; their multiply-accumulates count."""
    network, target = prepared(attention), load_target("cuda-sm80" if gpu else "haswell")
    found = lower(network.mod, network.plan(precision), target)
    annotated = Pipeline(network.plan(precision), network.ranges, target.instruction).annotate(network.mod)
    functions = [f for _, f, _ in attr.calls(annotated)]
    kinds = {attr.text(f, attr.KIND): attr.text(f, attr.PRECISION) for f in functions}
    assert kinds["batch_matmul"] == executed
    if gpu:
        unit = "tensor core" if executed == "fp16" else "plain"
        assert macs_by_unit(found.calls)[unit] == 2 * 2 * 3 * 11 * 11 * 15


def test_padding_counts_as_work_of_the_kernel_and_not_of_the_operator() -> None:
    shape = ConvolutionShape(1, 9, 9, 3, 10, (3, 3), padding=(1, 1, 1, 1))
    spec = KernelSpec("conv2d", shape, "uint8", Output("uint8"), "cuda")
    work = kernel_work(spec)
    assert work.macs == 81 * 10 * 27
    # Rows to whole tiles, ten columns to sixteen, and the nine elements of a kernel row to sixteen.
    rows = -(-81 // spec.default_tile().rows) * spec.default_tile().rows
    assert work.steps == rows * 16 * 3 * 16
    assert work.name == "imma"


def test_weights_of_four_taps_of_a_channel_lie_in_a_word() -> None:
    shape = ConvolutionShape(1, 9, 9, 8, 8, (3, 5), groups=8)
    spec = KernelSpec("depthwise", shape, "uint8", Output("uint8"), "cuda")
    assert spec.dot_taps
    weight = np.arange(8 * 15, dtype=np.int8).reshape(8, 1, 3, 5)
    packed = weight_layout(spec).pack(weight)
    assert packed.shape == (1, 1, 3 * 2, 1, 8, 4)
    for channel in range(8):
        for r in range(3):
            taps = np.concatenate([packed[0, 0, 2 * r, 0, channel], packed[0, 0, 2 * r + 1, 0, channel]])
            np.testing.assert_array_equal(taps, [*weight[channel, 0, r], 0, 0, 0])


def test_every_kernel_has_thread_blocks() -> None:
    network, target = prepared(mixed), load_target("cuda-sm80")
    found = lower(network.mod, network.plan("w8a8"), target)
    lowered, functions = found.module, {call.kernel for call in found.calls}
    code = cuda_code(build_passes()(lowered), target)
    assert len(code.kernels) >= len(functions)
    for kernel in code.kernels:
        assert f" {kernel.name}(" in code.source
        assert None not in kernel.block
        threads = int(np.prod(kernel.block))
        assert 32 <= threads <= 1024
        assert threads % 32 == 0
        assert min(kernel.grid) >= 1
        assert all(parameter.endswith("*") for parameter in kernel.parameters)
    assert "llvm" not in code.source
    assert "__float2int_rn" in code.source
    specs = [
        KernelSpec.from_json(str(f.attrs[ATTRIBUTE]))
        for _, f in lowered.functions_items()
        if f.attrs is not None and ATTRIBUTE in f.attrs
    ]
    assert any(spec.row.lanes == FRAGMENT for spec in specs)


def test_half_floats_pay_on_a_gpu_and_not_on_a_processor() -> None:
    shape = ConvolutionShape(1, 28, 28, 128, 128, (3, 3), padding=(1, 1, 1, 1))

    def seconds(instruction: str, in_dtype: str, weight: str) -> float:
        spec = KernelSpec("conv2d", shape, in_dtype, Output(in_dtype), instruction, weight_dtype=weight)
        work = kernel_work(spec)
        if instruction == "cuda":
            gpu = load_target("jetson-orin").gpu
            assert gpu is not None
            return work.steps / gpu_peaks(gpu, {work.name}).macs_per_second[work.name]
        roofline = load_target("haswell").roofline
        assert roofline is not None
        return work.steps / peaks_of(roofline, {work.name}, 1).macs_per_second[work.name]

    single, half, eight = (
        [seconds(where, *dtypes) for where in ("cuda", "avx2")]
        for dtypes in (("float32", "float32"), ("float32", "float16"), ("uint8", "float32"))
    )
    assert single[0] == pytest.approx(8 * half[0]) == pytest.approx(16 * eight[0])
    assert half[1] == single[1]


def _cost(name: str, fp32: float, fp16: float, w8a8: float, w4a8: float) -> OperatorCost:
    seconds = {"fp32": fp32, "fp16": fp16, "w8a8": w8a8, "w4a8": w4a8}
    return OperatorCost(name, "conv2d", {precision: precision for precision in seconds}, seconds)


def test_a_model_says_why() -> None:
    operators = (_cost("first", 4, 1, 2, 2), _cost("wide", 4, 2, 1, 0.5), _cost("flat", 1, 1, 1, 1))
    precisions = ("fp32", "fp16", "w8a8", "w4a8")
    table = CostTable(1, "modelled", "", "jetson-orin", "", 1, precisions, operators, ())
    plan = PrecisionPlan({"first": Precision.parse("w8a8"), "wide": Precision.parse("w4a8"), "flat": FP32})
    assert latency_notes(table, plan) == (
        "The model of jetson-orin, each kernel at its roof: all operators alike take of fp32's time "
        "fp16 × 0.44, w8a8 × 0.44, w4a8 × 0.39.",
        "1 operators are faster there in float than in any 8-bit form: first.",
        "1 operators are faster there with fewer weight bits than 8, as reading them takes longest: wide.",
        "1 operators are not in their fastest precision, for the loss or a limit: first.",
    )
    assert latency_notes(dataclasses.replace(table, kind="measured"), plan) == ()


def test_costs_of_a_gpu_are_modelled_only() -> None:
    with pytest.raises(MpqError, match="kernels on a GPU are not timed one by one; use --modelled"):
        measure_costs(prepared(mixed).mod, load_target("jetson-orin"), [Precision.parse("w8a8")])


def test_the_whole_network_is_modelled() -> None:
    network = prepared(mixed)
    table = model_costs(network.mod, load_target("jetson-orin"), [Precision.parse("w8a8")])
    assert table.kind == "modelled"
    assert table.predict(network.plan("w8a8")) > 3e-6 * sum(o.kind == "conv2d" for o in table.operators)
