"""Tuning of GPU kernels without a GPU: spaces, builds, what is refused, logs, and what is said where none is found."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_cases import gpu_case, run_on_gpu
from frontend_networks import network
from servers import serving, start
from small_networks import kernel, node

from tvm_mpq import cli
from tvm_mpq.cost.network import placeholder_ranges
from tvm_mpq.cuda import nvcc
from tvm_mpq.cuda.nvcc import Resources, parse_resources
from tvm_mpq.cuda_check.machine_code import fatbins, kernel_codes
from tvm_mpq.device import functions as device_functions
from tvm_mpq.device.address import Address
from tvm_mpq.device.connection import Place
from tvm_mpq.device.machine import DeviceMachine
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx
from tvm_mpq.gpu import NVIDIA_GPU, DriverDevice, FoundGpu, driver_device
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.cuda.space import STATIC_SHARED
from tvm_mpq.kernels.cuda.tensor_core import tensor_shared
from tvm_mpq.kernels.cuda.tile import CudaTile
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import W8A8
from tvm_mpq.runtime import machine
from tvm_mpq.target import Target, load_target
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.pipeline import Pipeline
from tvm_mpq.tuning import tune
from tvm_mpq.tuning.building_cuda import why_unfit
from tvm_mpq.tuning.features import features
from tvm_mpq.tuning.log import TuningLog, log_folder
from tvm_mpq.tuning.lookup import tuned_tiles
from tvm_mpq.tuning.record import tile_from_json, tile_to_json
from tvm_mpq.tuning.runner import Builds, Timing
from tvm_mpq.tuning.workloads import workloads

_SHAPE = ConvolutionShape(1, 9, 11, 32, 40, (3, 3), padding=(1, 1, 1, 1))
_INTEGER = KernelSpec("conv2d", _SHAPE, "uint8", Output("uint8"), "cuda")
_HALF = KernelSpec("conv2d", _SHAPE, "float32", Output("float32"), "cuda", weight_dtype="float16")
_CODES = replace(_HALF, weight_dtype="int8", weight_bits=4, weight_group=32, halves=True)
_FLOAT = replace(_HALF, weight_dtype="float32")
_NO_GPU = pytest.mark.skipif(driver_device() is not None, reason="this machine has an NVIDIA GPU")
_NEEDS_NVCC = pytest.mark.skipif(
    nvcc.find_tool("nvcc") is None, reason="no CUDA compiler: install the extra 'cuda'"
)


def test_tiles_of_a_space_compute_the_same() -> None:
    """Some far apart, the largest among them; each fits shared memory, and the model tells it from all others."""
    cases = {}
    for spec in (_INTEGER, _HALF, _CODES, _FLOAT):
        space = spec.space()
        assert space[0] == spec.default_tile()
        assert len(set(space)) == len(space) > 5
        assert all(tile_from_json(tile_to_json(tile)) == tile for tile in space)
        assert len(np.unique(np.nan_to_num(features(spec, space), nan=-1), axis=0)) == len(space)
        largest = max(space, key=lambda tile: (tile.rows * tile.columns, tile.depth))
        with_and_without = [next((t for t in space if t.ahead == ahead), space[1]) for ahead in (True, False)]
        for tile in (*with_and_without, largest):
            cases[f"{spec.precision} {tile}"] = gpu_case(spec, 1, tile=tile)
    for name, result in run_on_gpu(cases).items():
        np.testing.assert_array_equal(result, cases[name].expected, err_msg=name, strict=True)


def test_kernels_of_one_tile_have_a_space_of_that() -> None:
    one_row = KernelSpec("matmul", ConvolutionShape(1, 1, 1, 64, 32), "uint8", Output("uint8"), "cuda")
    depthwise = KernelSpec(
        "depthwise", replace(_SHAPE, out_channels=32, groups=32), "uint8", Output("uint8"), "cuda"
    )
    for spec in (one_row, depthwise):
        assert spec.space() == [spec.default_tile()]
        assert features(spec, spec.space()).shape[0] == 1


def test_what_the_assembler_says_is_read() -> None:
    said = """ptxas info    : Compiling entry function 'f' for 'sm_80'
    0 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 4096 bytes smem, 400 bytes cmem[0]
    0 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 96 registers, 400 bytes cmem[0]
"""
    assert parse_resources(said) == Resources(96, 20, 4096)
    assert parse_resources("") == Resources(0, 0, 0)


@pytest.mark.parametrize(
    ("resources", "threads", "why"),
    [
        (Resources(64, 0, 4096), 256, ""),
        (Resources(64, 20, 4096), 256, "20 bytes of registers are kept in memory"),
        (
            Resources(255, 0, 4096),
            512,
            "no block of 512 threads with 255 registers each and 4096 bytes .* fits sm_80",
        ),
        (Resources(64, 0, 65 << 10), 256, "no block .* 66560 bytes of shared memory fits sm_75"),
    ],
)
def test_tiles_that_are_not_worth_measuring(resources: Resources, threads: int, why: str) -> None:
    found = why_unfit(resources, threads, ["sm_80", "sm_75", "sm_999"])
    assert re.fullmatch(why, found)


@_NEEDS_NVCC
def test_tiles_are_built_with_machine_code_of_the_gpu_that_measures(tmp_path: Path) -> None:
    """One is no tile of its kernel, and fails alone."""
    target = load_target("cuda-sm80")
    assert target.gpu is not None
    one = replace(target, gpu=replace(target.gpu, architectures=("sm_90",)))
    kept = tmp_path / "kept.so"

    def seconds(paths: list[str], parameters: list[Any], rounds: int) -> list[list[float]]:
        shutil.copyfile(paths[0], kept)
        assert parameters[0][0] == [[99, 32], "uint8"]
        assert parameters[0][-1] == [[99, 40], "uint8"]
        return [[1e-3] * rounds for _ in paths]

    builds = Builds(one, seconds)
    tile = _INTEGER.default_tile()
    try:
        good, bad = builds.measure([(_INTEGER, tile), (_INTEGER, replace(tile, depth=5))], 2)
    finally:
        builds.close()
    assert good == Timing((1e-3, 1e-3))
    assert "5 fragments do not divide a reduction of 18" in bad.error
    if nvcc.find_tool("cuobjdump") and nvcc.find_tool("nvdisasm"):
        (binary,) = fatbins(kept.read_bytes())
        (code,) = kernel_codes(binary)
        assert (code.architecture, code.threads) == ("sm_90", tile.threads)
        assert code.shared == tensor_shared(_INTEGER.row, tile) <= STATIC_SHARED


def _model(folder: Path) -> Path:
    path = folder / "one.onnx"
    shapes, weights = {"x": [1, 64, 28, 28]}, {"w": kernel(64, 64, 1, 1, 0)}
    onnx.save(network([node("Conv", "x w", "y")], shapes, ["y"], weights), path)
    return path


_ORIN = DriverDevice("NVIDIA Orin", (8, 7), 16, 1.3, 164, 4096, 204.8)


class _KnownGpu:
    """In place of the runner on a machine with a GPU: tiles of 16 rows are fastest there."""

    def __init__(self, target: Target, threads: int, seed: int, cpu: str) -> None:
        assert target.gpu is not None
        assert (target.gpu.architectures, threads) == (("sm_80",), 1)
        self.cpu = cpu

    def measure(self, jobs: Sequence[tuple[KernelSpec, Tile]], rounds: int) -> list[Timing]:
        return [Timing((1e-6 * tile.rows,) * rounds) for _, tile in jobs]

    def __enter__(self) -> _KnownGpu:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_what_was_tuned_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of one architecture is measured, and records are the GPU's, whatever the processor's threads."""
    monkeypatch.setattr(machine, "driver_device", lambda: _ORIN)
    monkeypatch.setattr(machine, "gpu_features", lambda: frozenset([NVIDIA_GPU]))
    monkeypatch.setattr(tune, "LocalRunner", _KnownGpu)
    model, logs, target = _model(tmp_path), tmp_path / "logs", load_target("cuda-sm75")
    command = ["tune", str(model), "--target", "cuda-sm75", "--no-baseline", "--trials", "40"]
    assert cli.main([*command, "--tuning-logs", str(logs)]) == 0
    folder = log_folder(logs, target)
    assert folder.name == "sm_75-sm_80-sm_90"
    assert [path.name for path in folder.iterdir()] == ["nvidia-orin.jsonl"]
    records = TuningLog.read(folder).records
    assert {(record.cpu, record.threads) for record in records} == {("NVIDIA Orin", 1)}
    mod = import_onnx(model)
    plan = PrecisionPlan.uniform(["y"], W8A8)
    (key,) = workloads(mod, plan, target)
    tiles = tuned_tiles(target, logs, threads=2)
    tile = tiles(key)
    assert isinstance(tile, CudaTile)
    assert tile.rows == 16 < key.default_tile().rows
    pipeline = Pipeline(plan, placeholder_ranges(mod), target.instruction, tiles=tiles)
    lowered = pipeline.lower(pipeline.annotate(mod))
    functions = [f for _, f in lowered.functions_items() if attr.text(f, attr.TILE)]
    assert [attr.text(f, attr.TILE) for f in functions] == ["tuned"]


def test_a_device_tells_of_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_functions, "_folder", lambda: tmp_path)
    for found, seen in ((None, None), (_ORIN, FoundGpu("NVIDIA Orin", (8, 7)))):
        monkeypatch.setattr(device_functions, "driver_device", lambda found=found: found)
        device = DeviceMachine(Place(Address("nowhere", 1), ""))
        about = json.loads(json.dumps(device_functions.Functions().describe()))
        monkeypatch.setattr(device, "_connection", SimpleNamespace(about=about))
        assert device.gpu == seen


def test_what_a_gpu_runs_of_some_code() -> None:
    names = ["sm_75", "sm_80", "sm_90"]
    for capability, code in (((7, 5), "sm_75"), ((8, 0), "sm_80"), ((8, 7), "sm_80"), ((9, 0), "sm_90")):
        assert FoundGpu("one", capability).code(names) == code
    assert FoundGpu("newer", (12, 0)).code(names) == "sm_90"
    with pytest.raises(
        MpqError, match=r"the GPU old has compute capability 7\.0, and runs no code for sm_75"
    ):
        FoundGpu("old", (7, 0)).code(names)


@_NO_GPU
def test_without_a_gpu_one_line_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Here, and where a server runs on a machine that has none either."""
    arguments = ["tune", "no.onnx", "--target", "cuda-sm80", "--tuning-logs", str(tmp_path)]
    assert cli.main(arguments) == 2
    error = capfd.readouterr().err
    assert "no NVIDIA GPU in this machine" in error
    assert error.count("\n") == 1
    with serving([start("")]) as (server,):
        assert cli.main([*arguments, "--rpc", str(server.address)]) == 2
    error = capfd.readouterr().err
    assert "no NVIDIA GPU in the device" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(driver_device() is None, reason="no NVIDIA GPU: kernels were never tuned on one")
@_NEEDS_NVCC
def test_tuning_on_a_gpu(tmp_path: Path) -> None:
    result = tune.tune_model(
        _model(tmp_path), logs=tmp_path / "logs", target="host-cuda", trials=16, baseline=False
    )
    assert [kernel.tuned for kernel in result.kernels] == [True]
    assert result.kernels[0].seconds > 0
