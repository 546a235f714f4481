"""8-bit activations by 4-bit weights on int4 tensor cores: on the emulated device, in machine code, and where not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_cases import cuda_source, gpu_case, run_on_gpu
from cuda_texts import require_compiler
from emulated_cases import Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_networks import mixed, prepared
from test_integer_kernels import shapes

from tvm_mpq import gpu
from tvm_mpq.cost.modelled import gpu_peaks
from tvm_mpq.cost.runs import lower
from tvm_mpq.cost.work import kernel_work
from tvm_mpq.cuda import nvcc
from tvm_mpq.cuda_check.check import check_network
from tvm_mpq.cuda_check.emulator import Emulator, KernelFault
from tvm_mpq.cuda_check.kernels import KernelInfo
from tvm_mpq.cuda_check.machine_code import kernel_codes
from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import DriverDevice
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.cuda.dot_rows import dot_rows_fits
from tvm_mpq.kernels.cuda.int4_product import FUNCTION, NAME
from tvm_mpq.kernels.cuda.space import STATIC_SHARED
from tvm_mpq.kernels.cuda.tensor_core import tensor_shared
from tvm_mpq.kernels.cuda.tile import CudaTile
from tvm_mpq.kernels.cuda.units import macs_by_unit
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.target import _FOLDER, host_cuda_target, load_target, parse_target

TOGETHER = 8
"""Kernels that are compiled as one module."""
_SHAPE = ConvolutionShape(1, 14, 14, 64, 48, (3, 3), padding=(1, 1, 1, 1))
_CALLER = """
extern "C" __global__ void product(unsigned* a, unsigned* b, int* sums, int lanes) {
  int lane = threadIdx.x;
  if (lane < lanes)
    mma_m16n8k64_u4_s4(sums + 4 * lane, a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3],
                       b[2 * lane], b[2 * lane + 1]);
}
"""
_KERNEL = KernelInfo("product", (512, 256, 512, 0), "xX")


def _many_rows(shape: ConvolutionShape) -> bool:
    return not dot_rows_fits(shape, "uint8")


def by_int4(spec: KernelSpec) -> KernelSpec:
    found = replace(spec, instruction="cuda-int4").by_int4()
    assert found is not None
    return found


def agree(cases: dict[str, Case]) -> None:
    for name, result in run_on_gpu(cases, "jetson-orin").items():
        np.testing.assert_array_equal(result, cases[name].expected, err_msg=name, strict=True)
        assert result.size < 100 or len(np.unique(result)) > 10


@settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(shapes().filter(_many_rows), min_size=TOGETHER, max_size=TOGETHER), st.data())
def test_convolutions_and_products_of_any_shape(drawn: list[ConvolutionShape], data: st.DataObject) -> None:
    """Of 1 to 16 neighbours in memory, with one step of the reduction or more, to 8 bits and to float."""
    cases = {}
    for place, shape in enumerate(drawn):
        bits, zeros = data.draw(st.integers(2, 4)), data.draw(st.tuples(*[st.integers(0, 255)] * 2))
        family = "conv2d"
        if place % 4 == 3:
            family, shape = "matmul", ConvolutionShape(*(data.draw(st.integers(5, 70)), 1, 1, 4 * place, 24))
        elif place % 2:
            shape = replace(shape, in_channels=8 * place * shape.groups)
        out = Output(data.draw(st.sampled_from(["uint8", "float32"])))
        spec = by_int4(KernelSpec(family, shape, "uint8", out, "cuda", bits))
        cases[f"{place}: {spec.name}"] = gpu_case(spec, place, zeros)
    agree(cases)


def test_tiles_of_the_space_compute_the_same() -> None:
    """It has those of int8 too, which compute the same from the same weights, and all fit shared memory."""
    spec = KernelSpec("conv2d", _SHAPE, "uint8", Output("uint8"), "cuda-int4", 4)
    tiles = [tile for tile in spec.space() if isinstance(tile, CudaTile)]
    assert tiles[0] == spec.faster().default_tile()
    assert {tile.int4 for tile in tiles} == {False, True}
    assert all(tensor_shared(spec.with_tile(tile).row, tile) <= STATIC_SHARED for tile in tiles)
    ours = [tile for tile in tiles if tile.int4]
    chosen = {
        max(ours, key=lambda tile: (tile.rows * tile.columns, tile.depth)),
        next(tile for tile in ours if tile.ahead),
        next(tile for tile in ours if not tile.ahead),
        max(ours, key=lambda tile: (tile.depth, tile.ahead)),
        next(tile for tile in tiles if not tile.int4),
    }
    agree({str(tile): gpu_case(spec.with_tile(tile), 1, tile=tile) for tile in chosen})


def test_the_emulated_instruction_is_the_one_of_the_manual() -> None:
    """Fragments of the PTX ISA, "Matrix Fragments for mma.m16n8k64", written out element by element."""
    require_compiler()
    rng = np.random.default_rng(3)
    left, right = rng.integers(0, 16, (16, 64)), rng.integers(-8, 8, (64, 8))
    sums = rng.integers(-(2**31), 2**31, (16, 8))
    a, b, c = (np.zeros((32, count), kind) for count, kind in ((4, np.uint32), (2, np.uint32), (4, np.int32)))
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(32):
            row = group + (0 if i < 8 or 16 <= i < 24 else 8)
            value = int(left[row, thread * 8 + i % 8 + (32 if i >= 16 else 0)])
            a[lane, i // 8] |= value << 4 * (i % 8)
        for i in range(16):
            value = int(right[thread * 8 + i % 8 + (32 if i >= 8 else 0), group]) & 15
            b[lane, i // 8] |= value << 4 * (i % 8)
        for i in range(4):
            c[lane, i] = sums[group + (8 if i >= 2 else 0), thread * 2 + i % 2]
    emulator = Emulator(FUNCTION + _CALLER, [_KERNEL])
    emulator.launch("product", [a, b, c, 32], [1], [32])
    expected = (sums + left @ right).astype(np.uint32).view(np.int32)
    for lane in range(32):
        for i in range(4):
            assert c[lane, i] == expected[lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2]
    with pytest.raises(KernelFault, match=r"^product: warp divergence: "):
        emulator.launch("product", [a, b, c, 16], [1], [32])


def test_a_network_of_four_bits_is_the_processors() -> None:
    """Convolutions of groups, dilations and odd channels; every multiply-accumulate but the depthwise ones."""
    require_compiler()
    network, target = prepared(mixed), load_target("jetson-orin")
    plan = network.plan("w4a8")
    found = lower(network.mod, plan, target)
    steps = {call.step for call in found.calls if call.step}
    assert "imma4" in steps
    assert macs_by_unit(found.calls)["tensor core"] > 0
    (inputs,) = [[*network.feeds().values()]]
    for output in check_network(network.mod, plan, network.ranges, target, [inputs]).outputs:
        assert output.different == 0
        assert output.largest > 0


@pytest.mark.parametrize("name", ["cuda-sm75", "cuda-sm80", "cuda-sm90"])
def test_targets_with_other_architectures_stay_on_int8(name: str) -> None:
    spec = KernelSpec("conv2d", _SHAPE, "uint8", Output("uint8"), load_target(name).instruction, 4)
    assert spec.by_int4() is None
    assert spec.faster() == spec
    assert not any(tile.int4 for tile in spec.space() if isinstance(tile, CudaTile))
    assert NAME not in spec.schedule().script()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '["sm_87"]',
            '["sm_80", "sm_87", "sm_90"]',
            r"sm_90 has no int4 tensor cores for 'cuda-int4': use 'cuda'",
        ),
        ('["sm_87"]', '["sm_90"]', "sm_90 has no int4 tensor cores"),
        ("imma4 = 4096", "", "'cuda-int4' needs 'imma4' in 'macs_per_cycle'"),
    ],
)
def test_a_target_without_them_that_names_them_is_refused(old: str, new: str, message: str) -> None:
    text = (_FOLDER / "jetson-orin.toml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(MpqError, match=message) as error:
        parse_target(text.replace(old, new, 1), "mine.toml")
    assert str(error.value).startswith("mine.toml")
    other = parse_target(text.replace("cuda-int4", "cuda").replace(old, new, 1), "mine.toml")
    assert other.instruction == "cuda", "the same GPU can stay on int8"


@pytest.mark.parametrize(
    ("capability", "instruction"), [((7, 5), "cuda-int4"), ((8, 6), "cuda-int4"), ((9, 0), "cuda")]
)
def test_the_gpu_of_this_machine_says_which(
    capability: tuple[int, int], instruction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = DriverDevice("one", capability, 16, 1.3, 164, 4096, 204.8)
    monkeypatch.setattr(gpu, "driver_device", lambda: found)
    assert host_cuda_target().instruction == instruction


def test_which_kernels_are_on_int4() -> None:
    """Not those of codes that are bytes, of few rows, or whose reduction would mostly be padding."""
    spec = KernelSpec("conv2d", _SHAPE, "uint8", Output("uint8"), "cuda-int4", 4)
    assert spec.faster().name.startswith("conv2d_int4_w4a8_")
    assert spec.faster().base == spec
    for other in (
        replace(spec, weight_bits=5),
        replace(spec, weight_group=32),
        replace(spec, family="matmul", shape=ConvolutionShape(4, 1, 1, 64, 48)),
        replace(spec, in_dtype="float32", weight_dtype="int8", halves=True, out=Output("float32")),
    ):
        assert other.by_int4() is None
        assert other.faster() == other
    narrow = replace(spec, shape=ConvolutionShape(1, 14, 14, 16, 48))
    assert narrow.by_int4() is not None
    assert narrow.faster() == narrow


def test_two_products_of_four_bits_take_as_long_as_one_of_eight() -> None:
    orin = load_target("jetson-orin").gpu
    assert orin is not None
    spec = KernelSpec("conv2d", _SHAPE, "uint8", Output("uint8"), "cuda-int4", 4)
    eight, four = kernel_work(spec), kernel_work(spec.faster())
    assert (eight.name, four.name) == ("imma", "imma4")
    assert eight.macs == four.macs
    assert four.steps == 2 * eight.steps
    rates = gpu_peaks(orin, {"imma", "imma4"}).macs_per_second
    assert rates["imma4"] == 2 * rates["imma"]


@pytest.mark.skipif(nvcc.find_tool("nvcc") is None, reason="no CUDA compiler: install the extra 'cuda'")
def test_machine_code_multiplies_four_bits_and_spills_nothing() -> None:
    shapes = (_SHAPE, ConvolutionShape(1, 14, 14, 672, 112), ConvolutionShape(1, 16, 16, 3, 32, (3, 3)))
    convolutions = {
        str(shape): KernelSpec("conv2d", shape, "uint8", Output("uint8"), "cuda", 4) for shape in shapes
    }
    rows = KernelSpec("matmul", ConvolutionShape(128, 1, 1, 768, 256), "uint8", Output("uint8"), "cuda", 4)
    kernels = {name: by_int4(spec).schedule() for name, spec in {**convolutions, "rows": rows}.items()}
    binary, resources = nvcc.best_code(cuda_source(kernels), ["sm_75", "sm_87"])
    assert resources.spilled == 0
    if nvcc.find_tool("cuobjdump") is None or nvcc.find_tool("nvdisasm") is None:
        return
    codes = kernel_codes(binary)
    assert {code.architecture for code in codes} == {"sm_75", "sm_87"}
    for code in codes:
        assert code.spills == 0
        assert code.instructions["IMMA U4"] == code.instructions["IMMA"] > 0
