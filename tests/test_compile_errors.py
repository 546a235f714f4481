"""What a user can get wrong about a network and its data: one line, code 2, and every file as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from frontend_networks import network, weights
from onnx import helper
from PIL import Image
from small_networks import node

from tvm_mpq import cli
from tvm_mpq.compiler import compile_model
from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session
from tvm_mpq.target import load_target, missing_features

KEPT = b"what was here before"
OUTPUTS = ("m.tar", "m.fp32.tar", "out.json")
COMPILE = ["compile", "net.onnx", "--output", "m.tar", "--json", "out.json"]
CALIBRATED = [*COMPILE, "--calibration", "c.npz"]


def classifier(**changes: Any) -> onnx.ModelProto:
    """[1, 3, 8, 8] → [1, 4]; ``changes`` replace constants, or the shape of the input ``x``."""
    nodes = [
        node("Conv", "x w b", "conv", pads=[1, 1, 1, 1]),
        node("Relu", "conv", "relu"),
        node("GlobalAveragePool", "relu", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat fc", "logits"),
    ]
    constants = {"w": weights(6, 3, 3, 3), "b": weights(6, seed=1), "fc": weights(6, 4, seed=2)}
    shape = changes.pop("x", [1, 3, 8, 8])
    return network(nodes, {"x": shape}, ["logits"], {**constants, **changes})


def samples(**changes: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(8, 3, 8, 8)).astype(np.float32), "labels": rng.integers(0, 4, 8)}
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a network and samples; m.tar and others are there before."""
    onnx.save(classifier(), tmp_path / "net.onnx")
    np.savez(tmp_path / "c.npz", **samples())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["kept", "new"])
def fails(folder: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest):
    """Calls the command line with arguments that must fail, and returns what its one line says.

    Once with files in the places of the outputs, which must stay, and once without, when none may appear.
    """
    if request.param == "kept":
        for name in OUTPUTS:
            (folder / name).write_bytes(KEPT)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    def call(*arguments: str) -> str:
        before = contents()
        capfd.readouterr()
        assert cli.main(arguments) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert contents() == before
        return err.removeprefix("error: ").rstrip("\n")

    return call


def test_everything_right_compiles(folder: Path) -> None:
    assert cli.main(CALIBRATED) == 0
    assert all((folder / name).exists() for name in OUTPUTS)


# The network


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x00" * 64, b"hello, world\n" * 20])
def test_a_file_that_is_not_onnx(fails, content: bytes) -> None:
    Path("net.onnx").write_bytes(content)
    assert fails(*CALIBRATED) == "net.onnx is not an ONNX file, or is truncated"


def test_a_truncated_network(fails) -> None:
    Path("net.onnx").write_bytes(Path("net.onnx").read_bytes()[:-200])
    assert fails(*CALIBRATED) == "net.onnx is not an ONNX file, or is truncated"


def test_no_network(fails) -> None:
    Path("net.onnx").unlink()
    assert fails(*CALIBRATED) == "cannot read net.onnx: No such file or directory"
    assert fails("compile", ".", "--output", "m.tar") == "cannot read .: Is a directory"


@pytest.mark.parametrize(
    ("op_type", "domain"), [("FancyAttention", "com.example"), ("StringNormalizer", ""), ("Det", "")]
)
def test_an_operator_that_tvm_cannot_import(fails, op_type: str, domain: str) -> None:
    """Its type and its node are named."""
    if op_type == "StringNormalizer":
        custom = helper.make_node(op_type, ["s"], ["y"], name="strange one")
        model = network([custom], {"s": [3]}, ["y"], dtypes={"s": 8, "y": 8})
    else:
        nodes = [
            node("Relu", "x", "r"),
            helper.make_node(op_type, ["r"], ["y"], name="strange one", domain=domain),
        ]
        model = network(nodes, {"x": [3, 3]}, ["y"], domains=[domain] if domain else [])
    onnx.save(model, "net.onnx")
    said = fails(*COMPILE, "--precision", "fp32")
    assert "strange one" in said
    assert op_type in said
    assert "cannot import" in said


def test_open_and_missing_shapes(fails) -> None:
    onnx.save(classifier(x=["batch", 3, 8, 8]), "net.onnx")
    said = "an input has no fixed shape: add --input-shape x:1,3,8,8 (or other sizes in place of 1)"
    assert fails(*CALIBRATED) == said
    onnx.save(classifier(x=None), "net.onnx")
    assert "an input has no fixed shape: add --input-shape x:" in fails(*CALIBRATED)


def test_shapes_that_do_not_fit(fails) -> None:
    onnx.save(classifier(x=["batch", 3, "height", 8]), "net.onnx")
    for shape, said in (
        ("x:1,4,8,8", "shape 1,4,8,8 given for input 'x' contradicts the network's ?,3,?,8"),
        ("x:1,3,8", "shape 1,3,8 given for input 'x' has 3 axes; the network says 4: ?,3,?,8"),
        ("image:1,3,8,8", "the network has no input 'image'; its inputs are: x"),
    ):
        assert fails(*CALIBRATED, "--input-shape", shape) == said


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "b", "fc"])
def test_weights_that_are_not_finite(fails, name: str, value: float) -> None:
    constants = {"w": weights(6, 3, 3, 3), "b": weights(6, seed=1), "fc": weights(6, 4, seed=2)}
    constants[name].reshape(-1)[3] = value
    onnx.save(classifier(**constants), "net.onnx")
    said = fails(*CALIBRATED)
    assert said == f"initializer {name!r} holds {'NaN' if np.isnan(value) else 'infinity'}"
    assert fails(*COMPILE, "--precision", "fp32") == said


def test_weights_that_overflow_in_calibration(fails) -> None:
    """Finite weights can make infinite activations: the operator is named."""
    onnx.save(classifier(w=np.full((6, 3, 3, 3), 3e38, np.float32)), "net.onnx")
    said = fails(*CALIBRATED)
    assert "the output of operator conv" in said
    assert "holds NaN or infinity during calibration" in said


# The data


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": None}, "c.npz has no array for input 'x': it has labels"),
        (
            {"x": None, "images": np.zeros((8, 3, 8, 8))},
            "c.npz has no array for input 'x': it has labels, images",
        ),
        (
            {"x": np.zeros((8, 8, 8, 3), np.float32)},
            "array 'x' in c.npz has shape [8, 8, 8, 3]: expected [samples, 3, 8, 8]",
        ),
        (
            {"x": np.zeros((3, 8, 8), np.float32)},
            "array 'x' in c.npz has shape [3, 8, 8]: expected [samples, 3, 8, 8]",
        ),
        ({"x": np.float32(3)}, "array 'x' in c.npz has shape []: expected [samples, 3, 8, 8]"),
        (
            {"x": np.zeros((8, 3, 8, 8), np.complex64)},
            "array 'x' in c.npz is complex64, which does not cast safely to the input's float32",
        ),
        (
            {"x": np.full((8, 3, 8, 8), "a")},
            "array 'x' in c.npz is <U1, which does not cast safely to the input's float32",
        ),
        (
            {"x": np.full((8, 3, 8, 8), 1e39)},
            "array 'x' in c.npz holds a value beyond the range of float32 in sample 0",
        ),
        (
            {"x": np.zeros((0, 3, 8, 8), np.float32), "labels": np.zeros(0)},
            "c.npz is empty: it has no samples",
        ),
        ({"labels": np.zeros(7, np.int64)}, "labels in c.npz do not fit: 7 for 8 samples"),
        ({"labels": np.array(["a"] * 8)}, "labels in c.npz are <U1, not numbers"),
        ({"labels": np.full(8, np.nan)}, "label nan of sample 0 in c.npz is not finite"),
    ],
)
def test_samples_that_do_not_fit(fails, changes: dict[str, Any], said: str) -> None:
    np.savez("c.npz", **samples(**changes))
    assert fails(*CALIBRATED) == said


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sample", [0, 5, 7])
def test_samples_that_are_not_finite(fails, sample: int, value: float) -> None:
    arrays = samples()
    arrays["x"][sample, 1, 2, 3] = value
    np.savez("c.npz", **arrays)
    assert fails(*CALIBRATED) == f"array 'x' in c.npz holds NaN or infinity in sample {sample}"


def test_data_files_that_are_missing_or_damaged(fails) -> None:
    assert fails(*COMPILE, "--calibration", "gone.npz") == "there is no data at gone.npz"
    content = Path("c.npz").read_bytes()
    Path("c.npz").write_bytes(content[: len(content) // 2])
    assert fails(*CALIBRATED) == "c.npz is not an .npz file (or is truncated): write it with numpy.savez"
    np.savez("c.npz", x=np.array([{}] * 8, object))
    assert "cannot read 'x' of c.npz, which may be damaged" in fails(*CALIBRATED)


def test_folders_of_images_that_do_not_fit(fails) -> None:
    folder = Path("photos")
    folder.mkdir()
    arguments = [*COMPILE, "--calibration", "photos", "--resize", "8"]
    assert fails(*arguments) == "photos has no labels.csv (columns file,label), which says what each image is"
    for rows, said in (
        ("", "photos/labels.csv is empty: it names no images"),
        ("a.png,1\n", "photos/labels.csv line 2: there is no file 'a.png' in the folder"),
        ("../net.onnx,1\n", "photos/labels.csv line 2: file '../net.onnx' lies outside the folder"),
    ):
        (folder / "labels.csv").write_text("file,label\n" + rows)
        assert fails(*arguments) == said
    (folder / "labels.csv").write_text("file,label\na.png,1\n")
    (folder / "a.png").write_bytes(b"not an image")
    assert fails(*arguments).startswith("cannot decode image photos/a.png")
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    assert fails(*COMPILE, "--calibration", "photos") == (
        "image photos/a.png is 9x9 (height x width) but input 'x' takes 8x8: use --resize N"
    )


def test_calibration_that_is_missing_or_nothing(fails) -> None:
    said = "8-bit activations need samples to find their ranges: give --calibration DATA, or --precision fp32"
    assert fails(*COMPILE) == said
    assert fails(*CALIBRATED, "--samples", "0") == "cannot take 0 samples: ask for at least 1"
    said = fails(*CALIBRATED, "--observer", "median")
    assert said == "unknown observer 'median': use minmax, percentile, mse, entropy, loss"


# Targets and plans


def test_targets_with_near_matches(fails) -> None:
    said = fails(*CALIBRATED, "--target", "cascade-lake")
    assert said.startswith("unknown target 'cascade-lake'; did you mean cascadelake")
    said = fails(*CALIBRATED, "--target", "x86-64-v5")
    assert all(name in said for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4"))
    assert "host, alderlake" in fails(*CALIBRATED, "--target", "qqq"), "nothing is near: all are listed"


def test_a_precision_without_kernels_on_the_target(fails) -> None:
    known = ", ".join(load_target("host").precisions)
    assert "w4g*a8" in known
    assert (
        fails(*CALIBRATED, "--precision", "w8g32a8")
        == f"the target host has no kernels for w8g32a8: use {known}"
    )
    plan = '{"schema_version": 1, "operators": {"conv": "w4a16", "pool": "w8a8", "flat": "w8a8", "logits": "w8a8"}}'
    Path("plan.json").write_text(plan)
    assert (
        fails(*CALIBRATED, "--plan", "plan.json") == f"the target host has no kernels for w4a16: use {known}"
    )


def test_a_plan_that_leaves_operators_out(fails) -> None:
    Path("plan.json").write_text('{"schema_version": 1, "operators": {"conv": "w8a8"}}')
    assert "'pool'" in fails(*CALIBRATED, "--plan", "plan.json")


def test_a_plan_that_names_what_is_not_there(fails) -> None:
    plan = '{"schema_version": 1, "operators": {"conv": "w8a8", "pol": "w8a8", "flat": "w8a8", "logits": "w8a8"}}'
    Path("plan.json").write_text(plan)
    assert fails(*CALIBRATED, "--plan", "plan.json") == (
        "the plan names operator 'pol', which the network does not have; did you mean 'pool'?"
    )


def test_ir_that_cannot_be_written(fails) -> None:
    Path("file").write_bytes(KEPT)
    assert (
        fails(*CALIBRATED, "--dump-ir", "file")
        == "cannot write the IR to file/1_AnnotatePrecision.py: File exists"
    )


def test_python_callers_get_the_same_as_exceptions(folder: Path) -> None:
    with pytest.raises(MpqError, match="unknown target 'z'"):
        compile_model("net.onnx", target="z", output="m.tar")
    with pytest.raises(MpqError, match="need samples"):
        compile_model("net.onnx", output="m.tar")
    assert not Path("m.tar").exists()


# Machines that this is not


@pytest.mark.parametrize(
    "name", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "cascadelake", "alderlake", "znver4"]
)
def test_every_target_can_be_compiled_for_here(folder: Path, name: str) -> None:
    """Calibration runs on this machine's own kernels, so a target it cannot run is no obstacle."""
    package = compile_model("net.onnx", target=name, calibration="c.npz", output="m.tar")
    target = load_target(name)
    assert package.metadata.target.features == target.features
    assert {operator.executed for operator in package.metadata.operators} == {"w8a8"}
    loaded = Package.load("m.tar")
    inputs = samples()["x"][:1]
    missing = missing_features(target)
    if missing:
        with pytest.raises(MpqError, match=f"lacks {missing[0]}"):
            Session(loaded, threads=1)
        return
    (logits,) = Session(loaded, threads=1).run(inputs)
    (exact,) = Session(Package.load("m.fp32.tar"), threads=1).run(inputs)
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
