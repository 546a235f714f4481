"""The embedded sample is the network it claims to be, and its images are Fashion-MNIST's."""

from __future__ import annotations

import gzip
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import fashion_mnist

from tvm_mpq import sample
from tvm_mpq.errors import MpqError

needs_dataset = pytest.mark.skipif(
    not fashion_mnist.FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(sample.model_path())


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def logits(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of a hundred images at a time: no node of the network minds the batch, only its declared shapes."""
    batched = onnx.ModelProto()
    batched.CopyFrom(model)
    for value in (*batched.graph.input, *batched.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del batched.graph.value_info[:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(batched.SerializeToString(), options)
    chunks = np.array_split(images, -(-len(images) // 100))
    return np.concatenate([session.run(["logits"], {"image": chunk})[0] for chunk in chunks])


def test_accuracy_on_all_test_images(model: onnx.ModelProto) -> None:
    images, labels = sample.test_arrays()
    assert images.shape == (10_000, 1, 28, 28)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert Counter(labels.tolist()) == dict.fromkeys(range(10), 1_000)
    accuracy = float((logits(model, images).argmax(1) == labels).mean())
    assert accuracy >= 0.925
    # The script measured in PyTorch; rounding may move a few near-ties.
    assert accuracy == pytest.approx(float(metadata(model)["test_accuracy"]), abs=5e-4)


def test_input_output_and_metadata(model: onnx.ModelProto) -> None:
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"image": [1, 1, 28, 28], "logits": [1, 10]}
    properties = metadata(model)
    assert (float(properties["mean"]), float(properties["std"])) == (sample.MEAN, sample.STD)
    assert {"training_seed", "training_epochs", "torch_version", "preprocess"} <= properties.keys()


def test_parameters(model: onnx.ModelProto) -> None:
    trained = sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if not tensor.name.endswith(("running_mean", "running_var"))
    )
    assert trained == int(metadata(model)["parameters"])
    assert 100_000 <= trained <= 300_000
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in model.graph.initializer)


def test_has_the_parts_of_deployed_networks(model: onnx.ModelProto) -> None:
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    nodes = model.graph.node
    depthwise = [
        node.name
        for node in nodes
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group" and attribute.i == weights[node.input[1]][0] > 1
    ]
    assert depthwise == ["inverted1.depthwise", "inverted2.depthwise"]
    made = {name for node in nodes if node.op_type != "Constant" for name in node.output}
    residual = [node.name for node in nodes if node.op_type == "Add" and set(node.input) <= made]
    assert residual == ["residual1.add", "inverted2.add", "residual2.add"]
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["Conv"] == kinds["BatchNormalization"]
    assert {"Relu", "Clip", "GlobalAveragePool", "Flatten", "Gemm"} <= kinds.keys()


def test_nodes_have_readable_names(model: onnx.ModelProto) -> None:
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"stem.conv", "residual1.add", "inverted2.depthwise", "inverted2.add", "classifier"} <= set(names)
    assert all(name and "/" not in name for name in names)


def test_calibration_images_are_not_test_images() -> None:
    images, labels = sample.calibration_arrays()
    assert images.shape == (1_000, 1, 28, 28)
    assert labels.shape == (1_000,)
    assert set(labels.tolist()) == set(range(10))
    calibration = {image.tobytes() for image in images}
    assert calibration.isdisjoint(image.tobytes() for image in sample.test_arrays()[0])


@needs_dataset
def test_images_are_those_of_the_data_set() -> None:
    train, test = fashion_mnist.load()
    images, labels = sample.test_arrays()
    np.testing.assert_array_equal(images, sample.preprocess(test.pixels))
    np.testing.assert_array_equal(labels, test.labels)
    known = {pixels.tobytes(): label for pixels, label in zip(train.pixels, train.labels, strict=True)}
    with np.load(sample.model_path().with_name("fashion.npz"), allow_pickle=False) as archive:
        pixels, labels = archive["calibration_images"], archive["calibration_labels"]
    assert [known.get(image.tobytes()) for image in pixels] == labels.tolist()
    assert train.pixels.mean() / 255 == pytest.approx(sample.MEAN, abs=5e-5)
    assert train.pixels.std() / 255 == pytest.approx(sample.STD, abs=5e-5)


def test_preprocess() -> None:
    pixels = np.zeros((2, 28, 28), np.uint8)
    pixels[1, 3, 4] = 255
    x = sample.preprocess(pixels)
    assert x.shape == (2, 1, 28, 28)
    assert x.dtype == np.float32
    assert x[0, 0, 0, 0] == pytest.approx(-0.2860 / 0.3530, rel=1e-6)
    assert x[1, 0, 3, 4] == pytest.approx((1 - 0.2860) / 0.3530, rel=1e-6)


def test_write_files_round_trip(tmp_path: Path) -> None:
    sample.write_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.npz", "fashion.onnx", "test.npz"]
    assert (tmp_path / "fashion.onnx").read_bytes() == sample.model_path().read_bytes()
    for name, arrays in (("calibration", sample.calibration_arrays()), ("test", sample.test_arrays())):
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as archive:
            assert sorted(archive.files) == ["image", "labels"]
            np.testing.assert_array_equal(archive["image"], arrays[0], strict=True)
            np.testing.assert_array_equal(archive["labels"], arrays[1], strict=True)


def test_write_files_makes_the_folder(tmp_path: Path) -> None:
    sample.write_files(str(tmp_path / "new" / "folder"))
    assert (tmp_path / "new" / "folder" / "test.npz").is_file()


def test_write_files_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(MpqError, match="cannot make the folder"):
            sample.write_files(folder)
    assert (tmp_path / "taken").read_text() == "a file"


def test_missing_data_set_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(MpqError, match=r"train-images.* is missing: .*apt-get install dataset-fashion-mnist"):
        fashion_mnist.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "cannot read"),
        (gzip.compress(bytes(1000), mtime=0)[:-9], "cannot read"),
        (gzip.compress(bytes([0, 0, 8, 3]) + bytes(12), mtime=0), r"is not IDX of shape \[60000, 28, 28\]"),
    ],
)
def test_damaged_data_set(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(MpqError, match=message):
        fashion_mnist.load(tmp_path)
