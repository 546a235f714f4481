"""Data sets from real .npz files and real images, and each mistake with the line it prints."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tvm_mpq.dataset import Dataset, open_dataset, split
from tvm_mpq.errors import MpqError
from tvm_mpq.tensor_spec import TensorSpec

# A busy machine is not a failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

X = TensorSpec("x", (2, 3), "float32")
PHOTO = TensorSpec("input", (1, 3, 8, 8), "float32")
SHARED = Path(__file__).parents[1] / ".." / "shared"


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def refused(pattern: str, *args: object, **options: object) -> None:
    with pytest.raises(MpqError, match=pattern) as caught:
        open_dataset(*args, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.fixture
def numbers(tmp_path: Path) -> Dataset:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    return open_dataset(save(tmp_path / "d.npz", x=x, labels=np.arange(10)), [X], classes=10)


# Choosing samples.


def test_a_batch_has_the_samples_asked_for(numbers: Dataset) -> None:
    assert len(numbers) == 10
    batch = numbers.batch([4, 0, 4])
    assert batch["x"].dtype == np.float32
    assert batch["x"].tolist() == [[12, 13, 14], [0, 1, 2], [12, 13, 14]]
    assert numbers.subset([7, 2]).batch([1])["x"].tolist() == [[6, 7, 8]]
    assert numbers.labels is not None
    assert numbers.subset([7, 2]).subset([1]).labels.tolist() == [2]  # type: ignore[union-attr]


@given(st.integers(1, 7), st.integers(1, 10))
def test_batches_hold_every_sample_once_and_pad_the_last_by_repeating(size: int, count: int) -> None:
    class Counting:
        size = 10
        labels = None

        def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
            return {"x": indices.copy()}

        def digest(self, index: int) -> bytes:
            return bytes([index])

    view = Dataset(Counting()).subset(range(count))
    batches = [batch["x"] for batch in view.batches(size)]
    assert {len(batch) for batch in batches} == {size}
    joined = np.concatenate(batches)
    assert joined[: len(view)].tolist() == list(range(count))
    assert set(joined[len(view) :]) <= {count - 1}
    assert len(joined) - len(view) < size


def test_take_spreads_over_the_whole_set(numbers: Dataset) -> None:
    assert numbers.take(5).labels.tolist() == [0, 2, 4, 6, 8]  # type: ignore[union-attr]
    assert numbers.take(3).labels.tolist() == [0, 3, 6]  # type: ignore[union-attr]
    assert len(numbers.take(99)) == 10
    with pytest.raises(MpqError, match="at least 1"):
        numbers.take(0)


def test_limit_takes(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((8, 3), np.float32), labels=np.arange(8))
    assert open_dataset(path, [X], limit=4).labels.tolist() == [0, 2, 4, 6]  # type: ignore[union-attr]


@given(st.integers(0, 5))
def test_split_gives_disjoint_parts_that_a_seed_fixes(seed: int) -> None:
    class Ten:
        size = 10
        labels = np.arange(10)

        def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
            return {}

        def digest(self, index: int) -> bytes:
            return bytes([index])

    parts = split(Dataset(Ten()), [0.5, 0.3, 0.2], seed)
    assert [len(part) for part in parts] == [5, 3, 2]
    chosen = [int(label) for part in parts for label in part.labels]  # type: ignore[union-attr]
    assert sorted(chosen) == list(range(10))
    again = split(Dataset(Ten()), [0.5, 0.3, 0.2], seed)
    assert [part.content_hash() for part in parts] == [part.content_hash() for part in again]
    assert len({split(Dataset(Ten()), [0.5], s)[0].content_hash() for s in range(6)}) > 1


@pytest.mark.parametrize("fractions", [[], [0.6, 0.6], [0.5, 0.0], [1.0, 0.001], [-0.5]])
def test_a_split_that_cannot_be_is_refused(numbers: Dataset, fractions: list[float]) -> None:
    with pytest.raises(MpqError, match="cannot split"):
        split(numbers, fractions, 0)


def test_content_hash_follows_samples_order_labels_and_preprocessing_but_not_the_place(
    tmp_path: Path,
) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    labels = np.arange(4)
    first = open_dataset(save(tmp_path / "a.npz", x=x, labels=labels), [X])
    copy = open_dataset(save(tmp_path / "b.npz", x=x.astype(np.float64), labels=labels), [X])
    assert first.content_hash() == copy.content_hash()
    hashes = {
        first.content_hash(),
        first.subset([0, 1]).content_hash(),
        first.subset([1, 0]).content_hash(),
        open_dataset(tmp_path / "a.npz", [X], mean=1.0).content_hash(),
        open_dataset(save(tmp_path / "c.npz", x=x), [X]).content_hash(),
        open_dataset(save(tmp_path / "d.npz", x=x, labels=labels[::-1]), [X]).content_hash(),
        open_dataset(save(tmp_path / "e.npz", x=x + 1, labels=labels), [X]).content_hash(),
    }
    assert len(hashes) == 7


# Arrays.


def test_several_inputs_of_any_rank_and_dtype(tmp_path: Path) -> None:
    specs = [
        TensorSpec("ids", (1, 4), "int64"),
        TensorSpec("flag", (1,), "bool"),
        TensorSpec("h", (1, 2, 1, 2), "float16"),
    ]
    path = save(
        tmp_path / "d.npz",
        ids=np.arange(8, dtype=np.int32).reshape(2, 4),
        flag=np.array([True, False]),
        h=np.ones((2, 2, 1, 2)),
        unused=np.zeros(99),
    )
    dataset = open_dataset(path, specs)
    batch = dataset.batch([1])
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "ids": ("int64", (1, 4)),
        "flag": ("bool", (1,)),
        "h": ("float16", (1, 2, 1, 2)),
    }
    assert batch["ids"].tolist() == [[4, 5, 6, 7]]
    assert dataset.labels is None


def test_stored_pixels_are_normalized_a_channel_each(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    path = save(tmp_path / "d.npz", input=pixels)
    got = open_dataset(path, [PHOTO], mean=(1.0, 2.0, 3.0), scale=0.5).batch([0, 2])["input"]
    want = (pixels[[0, 2]] - np.array([1, 2, 3]).reshape(3, 1, 1)) * 0.5
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(open_dataset(path, [PHOTO]).batch([1])["input"], pixels[[1]])


def test_an_input_may_be_called_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", labels=np.ones((2, 3), np.float32))
    dataset = open_dataset(path, [TensorSpec("labels", (1, 3), "float32")])
    assert dataset.labels is None
    assert dataset.batch([0])["labels"].tolist() == [[1, 1, 1]]


def test_labels_may_be_targets_and_whole_floats_may_be_classes(tmp_path: Path) -> None:
    x = np.zeros((2, 3), np.float32)
    targets = open_dataset(save(tmp_path / "a.npz", x=x, labels=np.array([[0.5, 1], [2, 3]])), [X])
    assert targets.labels.tolist() == [[0.5, 1], [2, 3]]  # type: ignore[union-attr]
    classes = open_dataset(save(tmp_path / "b.npz", x=x, labels=np.array([1.0, 0.0])), [X], classes=2)
    assert classes.labels is not None
    assert classes.labels.dtype == np.int64


def bad_array(value: float, dtype: type = np.float32) -> np.ndarray:
    x: np.ndarray = np.zeros((4, 3), dtype)
    x[2, 1] = value
    return x


GOOD = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "pattern"),
    [
        ({"y": GOOD, "labels": np.zeros(4)}, "no array for input 'x': it has y, labels"),
        ({"x": np.zeros((4, 2))}, r"array 'x' in .* has shape \[4, 2\]: expected \[samples, 3\]"),
        ({"x": np.float32(1)}, r"has shape \[\]: expected"),
        (
            {"x": np.full((4, 3), "a")},
            "array 'x' in .* is <U1, which does not cast safely to the input's float32",
        ),
        ({"x": np.zeros((4, 3), complex)}, "is complex128, which does not cast"),
        ({"x": bad_array(2**24 + 1, np.int64)}, "integer that float32 cannot represent exactly in sample 2"),
        ({"x": bad_array(1e39, np.float64)}, "beyond the range of float32 in sample 2"),
        ({"x": bad_array(np.nan)}, "array 'x' in .* holds NaN or infinity in sample 2"),
        ({"x": bad_array(-np.inf)}, "array 'x' in .* holds NaN or infinity in sample 2"),
        ({"x": np.zeros((0, 3))}, "is empty"),
        ({"x": GOOD, "labels": np.arange(3)}, "labels in .* do not fit: 3 for 4 samples"),
        ({"x": GOOD, "labels": np.int64(1)}, "labels in .* do not fit: one value for 4 samples"),
        ({"x": GOOD, "labels": np.array([0, 1, 10, 2])}, "label 10 of sample 2 .* classes 0 to 9"),
        ({"x": GOOD, "labels": np.array([0, -1, 1, 2])}, "label -1 of sample 1 .* out of range"),
        ({"x": GOOD, "labels": np.array([0, 1, 1, 2.5])}, "label 2.5 of sample 3 .* not a whole number"),
        ({"x": GOOD, "labels": np.array([0, 1, np.nan, 2])}, "label nan of sample 2 .* not finite"),
        ({"x": GOOD, "labels": np.array(list("abcd"))}, "labels in .* are <U1, not numbers"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], pattern: str) -> None:
    refused(pattern, save(tmp_path / "d.npz", **arrays), [X], classes=10)


def test_arrays_with_different_numbers_of_samples(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=GOOD, y=np.zeros((3, 3)))
    refused(
        "differ in their number of samples: 'x' has 4, 'y' has 3",
        path,
        [X, TensorSpec("y", (2, 3), "float32")],
    )


def test_integers_the_input_cannot_hold(tmp_path: Path) -> None:
    ids = [TensorSpec("x", (1, 3), "int32")]
    refused("integer that int32 cannot", save(tmp_path / "a.npz", x=bad_array(2**31, np.int64)), ids)
    refused("is float32, which does not cast safely", save(tmp_path / "b.npz", x=GOOD), ids)


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([Trap()], dtype=object))
    refused("cannot read 'x' of", path, [X])
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    whole = save(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(50, 3))).read_bytes()
    refused("there is no data at", tmp_path / "absent.npz", [X])
    text = tmp_path / "text.npz"
    text.write_text("not a zip")
    refused("is not an .npz", text, [X])
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    refused("is not an .npz file \\(or is truncated\\)", cut, [X])
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(whole[:200] + bytes(40) + whole[240:])
    refused("cannot read 'x' of .* damaged", damaged, [X])
    np.save(tmp_path / "one.npy", GOOD)
    refused("is not an .npz", tmp_path / "one.npy", [X])


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=GOOD, y=GOOD)
    refused("--resize is for a folder", path, [X], resize=8)
    refused("--resize needs a size", path, [X], resize=0)
    refused("--scale must not be 0", path, [X], scale=0.0)
    refused("--mean needs finite", path, [X], mean=float("nan"))
    refused("--mean has 3 values but the input has no channels", path, [X], mean=(1.0, 2.0, 3.0))
    refused("one float input", path, [X, TensorSpec("y", (2, 3), "float32")], mean=1.0)
    refused("cannot take 0", path, [X], limit=0)


def test_networks_that_no_data_fits(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=GOOD)
    refused("has no inputs", path, [])
    refused("batch axis and fixed sizes", path, [TensorSpec("x", (), "float32")])
    refused("batch axis and fixed sizes", path, [TensorSpec("x", (0, 3), "float32")])
    refused("differ in their batch axis", path, [X, TensorSpec("y", (1, 3), "float32")])
    refused("x' is float33", path, [TensorSpec("x", (1, 3), "float33")])


# Images.


def folder(path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...] = ("file", "label")) -> Path:
    with (path / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def photo(path: Path, size: tuple[int, int] = (13, 11), mode: str = "RGB") -> np.ndarray:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.asarray(image)


def test_images_are_resized_normalized_and_laid_out_as_the_input_wants(tmp_path: Path) -> None:
    pixels = photo(tmp_path / "a.png")
    photo(tmp_path / "b.png", (8, 8))
    data = folder(tmp_path, [("a.png", 1, "me"), ("b.png", 0, "you")], ("file", "label", "author"))
    options = {"resize": 8, "mean": 127, "scale": 1 / 128}
    nchw = open_dataset(data, [PHOTO], **options, classes=2)  # type: ignore[arg-type]
    nhwc = open_dataset(data, [TensorSpec("input", (4, 8, 8, 3), "float32")], **options)  # type: ignore[arg-type]
    resized = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC), np.float64)
    got = nchw.batch([0])["input"]
    assert got.dtype == np.float32
    assert got.shape == (1, 3, 8, 8)
    np.testing.assert_array_equal(got[0], ((resized - 127) / 128).transpose(2, 0, 1))
    np.testing.assert_array_equal(
        nhwc.batch([0, 1])["input"].transpose(0, 3, 1, 2), nchw.batch([0, 1])["input"]
    )
    assert nchw.labels.tolist() == [1, 0]  # type: ignore[union-attr]
    assert nchw.content_hash() != nhwc.content_hash()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_feeds_colour_and_grayscale_networks(
    tmp_path: Path, mode: str, channels: int
) -> None:
    photo(tmp_path / "a.png", (8, 8), mode)
    data = open_dataset(folder(tmp_path, [("a.png", 0)]), [TensorSpec("g", (1, channels, 8, 8), "uint8")])
    got = data.batch([0])["g"]
    want = np.asarray(Image.open(tmp_path / "a.png").convert("RGB" if channels == 3 else "L")).reshape(
        8, 8, -1
    )
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[0].transpose(1, 2, 0), want)


def test_images_of_the_networks_own_size_need_no_resize_and_need_not_be_square(tmp_path: Path) -> None:
    pixels = photo(tmp_path / "a.png", (10, 6))
    data = open_dataset(folder(tmp_path, [("a.png", 0)]), [TensorSpec("i", (1, 3, 6, 10), "float32")])
    np.testing.assert_array_equal(data.batch([0])["i"][0], pixels.transpose(2, 0, 1))


def test_empty_labels_mean_no_labels_and_fractions_are_targets(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", (8, 8))
    assert open_dataset(folder(tmp_path, [("a.png", ""), ("a.png", "")]), [PHOTO]).labels is None
    data = open_dataset(folder(tmp_path, [("a.png", "1"), ("a.png", "0.25")]), [PHOTO])
    assert data.labels.tolist() == [1.0, 0.25]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rows", "header", "pattern"),
    [
        ([("a.png", 1)], ("name", "label"), "has no column 'file'.*it has name,label"),
        ([("a.png", 1)], ("file", "class"), "has no column 'label'"),
        ([], ("file", "label"), "is empty"),
        ([("a.png", 1), ("b.png", 1)], ("file", "label"), "line 3: there is no file 'b.png'"),
        ([("", 1)], ("file", "label"), "there is no file ''"),
        ([("../a.png", 1)], ("file", "label"), "line 2: file '../a.png' lies outside the folder"),
        ([("sub/../../a.png", 1)], ("file", "label"), "lies outside"),
        ([("/etc/passwd", 1)], ("file", "label"), "lies outside"),
        ([("C:\\a.png", 1)], ("file", "label"), "lies outside"),
        ([("..\\a.png", 1)], ("file", "label"), "lies outside"),
        ([("a.png", "cat")], ("file", "label"), "line 2: label 'cat' is not a whole number"),
        ([("a.png", "1.5")], ("file", "label"), "label '1.5' is not a whole number"),
        ([("a.png", 1), ("a.png", "")], ("file", "label"), "line 3: label '' is not a whole number"),
        (
            [("a.png", 1), ("a.png", 5)],
            ("file", "label"),
            "label 5 of sample 1 in .*labels.csv is out of range",
        ),
        ([("text.png", 1)], ("file", "label"), "cannot decode image .*text.png"),
        (
            [("wide.png", 1)],
            ("file", "label"),
            r"wide.png is 8x9 \(height x width\).*takes 8x8: use --resize",
        ),
        ([("deep.png", 1)], ("file", "label"), "deep.png has pixels of more than 8 bits"),
    ],
)
def test_folders_that_do_not_fit(
    tmp_path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...], pattern: str
) -> None:
    photo(tmp_path / "a.png", (8, 8))
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    photo(data / "a.png", (8, 8))
    photo(data / "wide.png", (9, 8))
    (data / "text.png").write_text("not an image")
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(data / "deep.png")
    refused(pattern, folder(data, rows, header), [PHOTO], classes=5)


def test_a_folder_without_a_table_or_with_a_broken_one(tmp_path: Path) -> None:
    refused("has no labels.csv", tmp_path, [PHOTO])
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1\n")
    refused("cannot read .*labels.csv", tmp_path, [PHOTO])
    (tmp_path / "labels.csv").write_text("")
    refused("has no column 'file'", tmp_path, [PHOTO])


def test_an_image_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", (8, 8))
    photo(tmp_path / "b.png", (8, 8))
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    data = open_dataset(folder(tmp_path, [("a.png", 0), ("b.png", 0)]), [PHOTO])
    data.batch([0])
    with pytest.raises(MpqError, match=re.escape(str(tmp_path / "b.png"))):
        data.batch([1])


def test_networks_and_options_that_images_do_not_fit(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", (8, 8))
    data = folder(tmp_path, [("a.png", 0)])
    refused("feeds one input", data, [PHOTO, TensorSpec("y", (1, 3), "float32")])
    refused("takes no images", data, [TensorSpec("x", (1, 12), "float32")])
    refused("takes no images", data, [TensorSpec("x", (1, 3, 8, 8), "int64")])
    refused("--resize 9 does not fit input 'input', which takes 8x8", data, [PHOTO], resize=9)
    refused("--mean has 2 values but the input has 3 channel", data, [PHOTO], mean=(1.0, 2.0))
    refused("takes uint8 pixels", data, [TensorSpec("x", (1, 3, 8, 8), "uint8")], mean=1.0)


def test_the_photos_that_networks_are_judged_on() -> None:
    path = SHARED / "data" / "imagenet-calibration"
    if not path.is_dir():
        pytest.skip("needs ../shared/data/imagenet-calibration")
    spec = TensorSpec("input", (1, 3, 224, 224), "float32")
    data = open_dataset(path, [spec], resize=224, mean=127, scale=0.0078125, limit=250, classes=1000)
    assert data.labels.tolist() == list(range(0, 1000, 4))  # type: ignore[union-attr]
    batch = data.batch([0, 249])["input"]
    assert batch.shape == (2, 3, 224, 224)
    assert -1.0 <= batch.min() < batch.max() <= 1.0
    refused("is 260x260 .* takes 224x224: use --resize", path, [spec])
