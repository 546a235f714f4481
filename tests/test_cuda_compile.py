"""Packages for GPUs on a machine without one: what they hold, what they say, and what is said where they cannot run.

NVIDIA's compiler is needed: on PATH, or from the extra ``cuda``.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvm_mpq import cli
from tvm_mpq.compiler import compile_model
from tvm_mpq.cuda import nvcc
from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import driver_device
from tvm_mpq.runtime.metadata import NEVER_EXECUTED
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session

_FATBIN = 0xBA55ED50.to_bytes(4, "little")
_NEEDS_NVCC = pytest.mark.skipif(
    nvcc.find_tool("nvcc") is None,
    reason="no CUDA compiler: install the extra 'cuda' to compile packages for GPUs",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions, with names as exporters write them."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=size).astype(np.float32) / 6, name)
        for name, size in (("w1", (20, 3, 3, 3)), ("w2", (9, 20, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["x:0", "w1"], ["/a/out"], "/a/Conv", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["/a/out"], ["/a/relu"], "/a/Relu"),
        helper.make_node("Conv", ["/a/relu", "w2"], ["/b/out"], "/b/Conv"),
        helper.make_node("Flatten", ["/b/out"], ["y"], "/b/Flatten"),
    ]
    x = helper.make_tensor_value_info("x:0", TensorProto.FLOAT, [1, 3, 6, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 270])
    path = tmp_path_factory.mktemp("cuda") / "two.onnx"
    graph = helper.make_graph(nodes, "two", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture(scope="module")
def data(model: Path) -> Path:
    path = model.with_suffix(".npz")
    np.savez(path, **{"x:0": np.random.default_rng(1).normal(size=(8, 3, 6, 5)).astype(np.float32)})
    return path


@pytest.fixture(scope="module")
def package(model: Path, data: Path) -> Path:
    output = model.with_name("orin.tar")
    compile_model(
        model, target="jetson-orin", calibration=data, precision="w4a8", output=output, baseline=False
    )
    return output


@_NEEDS_NVCC
def test_a_package_for_another_machine_holds_machine_code_of_its_gpu(package: Path) -> None:
    loaded = Package.load(package)
    library = loaded.library
    assert library[:4] == b"\x7fELF"
    assert int.from_bytes(library[18:20], "little") == 183  # the processor's code: AArch64
    assert library.count(_FATBIN) == 1
    code = library[library.index(_FATBIN) :]
    assert b"sm_87" in code
    assert b"__global__" not in library
    assert loaded.metadata.target.note == f"code for sm_87; {NEVER_EXECUTED}"
    assert loaded.weights  # four bits a weight, as on any target


@_NEEDS_NVCC
def test_nothing_of_this_machine_is_in_a_package(package: Path, tmp_path: Path) -> None:
    with tarfile.open(package) as archive:
        names = archive.getnames()
    assert not [name for name in names if "cuda" in name.lower() or name.endswith(".1")]
    library = Package.load(package).library
    for text in (b"tvm-mpq-", b"stand-ins", b"libcuda", str(Path.home()).encode(), b"/tmp/"):
        assert text not in library


@_NEEDS_NVCC
def test_equal_inputs_give_equal_bytes(model: Path, data: Path, package: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    compile_model(
        model, target="jetson-orin", calibration=data, precision="w4a8", output=again, baseline=False
    )
    assert Package.load(again).library == Package.load(package).library


@_NEEDS_NVCC
def test_without_a_gpu_a_package_is_not_run(package: Path, data: Path, tmp_path: Path, capfd) -> None:
    if driver_device() is not None:
        pytest.skip("this machine has an NVIDIA GPU")
    for command in (
        ["run", "--inputs", str(data), "--outputs", str(tmp_path / "o.npz")],
        ["benchmark", "--profile"],
    ):
        assert cli.main([command[0], str(package), *command[1:]]) == 2
        error = capfd.readouterr().err
        assert "this machine lacks nvidia-gpu" in error
        assert error.count("\n") == 1


@pytest.mark.skipif(driver_device() is None, reason="no NVIDIA GPU: no package was ever run on one")
@_NEEDS_NVCC
@pytest.mark.parametrize("precision", ["w8a8", "w4a8", "w4g16a8"])
def test_a_gpu_gives_the_bytes_of_a_processor(model: Path, data: Path, precision: str) -> None:
    x = np.load(data)["x:0"][:1]
    outputs = [
        Session(compile_model(model, target=name, calibration=data, precision=precision)).run(x)[0]
        for name in ("host", "host-cuda")
    ]
    np.testing.assert_array_equal(*outputs, strict=True)


def test_a_missing_compiler_is_named(model: Path, data: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(nvcc, "find_tool", lambda name: None)
    output = tmp_path / "p.tar"
    arguments = [
        "compile",
        str(model),
        "--target",
        "cuda-sm80",
        "--calibration",
        str(data),
        "--output",
        str(output),
    ]
    assert cli.main(arguments) == 2
    error = capfd.readouterr().err
    assert "no CUDA compiler (nvcc) found" in error
    assert "nvidia-cuda-nvcc" in error
    assert not output.exists()


@_NEEDS_NVCC
def test_a_missing_host_compiler_is_named(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """A PATH of everything that there is but C and C++ compilers; nvcc itself is found beforehand."""
    found = nvcc.find_nvcc()
    tools = {name: shutil.which(name) for name in ("sh", "cat", "rm", "dirname")}
    for name, path in tools.items():
        (tmp_path / name).symlink_to(path)
    monkeypatch.setattr(nvcc, "find_tool", lambda name: found)
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["compile", str(model), "--target", "cuda-sm80", "--calibration", str(data), "--no-baseline"]
    assert cli.main([*arguments, "--output", str(tmp_path / "p.tar")]) == 2
    error = capfd.readouterr().err
    assert "needs a C++ compiler beside it" in error
    assert "install g++" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "p.tar").exists()


@_NEEDS_NVCC
def test_what_the_compiler_complains_about_is_one_line() -> None:
    with pytest.raises(MpqError, match=r"the CUDA compiler .* failed: .*undefined"):
        nvcc.best_code('extern "C" __global__ void f(float *x) { *x = nowhere; }', ["sm_80"])[0]
    with pytest.raises(MpqError, match=r"the CUDA compiler .* failed"):
        nvcc.best_code("", ["sm_20"])[0]


@_NEEDS_NVCC
def test_of_several_levels_the_code_with_the_fewest_spills_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of 1024 threads leaves 64 registers to each, which cannot hold 96 values."""
    names = [f"v{i}" for i in range(96)]
    loads = "".join(f"float {name} = x[{i} * n];" for i, name in enumerate(names))
    stores = "".join(f"x[{i}] = {name};" for i, name in enumerate(reversed(names)))
    body = f"{{ {loads} __syncthreads(); {stores} }}"
    source = f'extern "C" __global__ void __launch_bounds__(1024) f(float *x, int n) {body}'
    tried: list[tuple[bytes, nvcc.Resources]] = []
    compiled = nvcc._compiled

    def watched(command: Sequence[str], text: str) -> tuple[bytes, nvcc.Resources]:
        tried.append(compiled(command, text))
        return tried[-1]

    monkeypatch.setattr(nvcc, "_compiled", watched)
    taken = nvcc.best_code(source, ["sm_80"])[0]
    assert len(tried) == 3
    fewest = min(resources.spilled for _, resources in tried)
    assert fewest > 0
    assert taken in [code for code, resources in tried if resources.spilled == fewest]
    tried.clear()
    assert nvcc.best_code('extern "C" __global__ void f(float *x) { x[0] = 1; }', ["sm_80"])[0]
    assert [resources.spilled for _, resources in tried] == [0]


def test_tools_are_found_in_packages(tmp_path: Path, monkeypatch) -> None:
    for version in ("cu13", "cu14"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        (folder / "nvcc").touch()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(nvcc, "_package_folders", lambda: sorted(tmp_path.glob("cu*"), reverse=True))
    assert nvcc.find_tool("nvcc") == str(tmp_path / "cu14" / "bin" / "nvcc")
    assert nvcc.find_tool("cuobjdump") is None
    monkeypatch.setattr(nvcc, "_package_folders", list)
    with pytest.raises(MpqError, match="no CUDA compiler"):
        nvcc.find_nvcc()
