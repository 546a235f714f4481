from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tiny_package import BATCH, CLASSES, FEATURES, expected, tiny_package

from tvm_mpq.dataset import open_dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.loss import get_loss
from tvm_mpq.runtime.evaluate import evaluate
from tvm_mpq.runtime.harness import benchmark, find_baseline, time_in_turns
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.resident import resident_bytes
from tvm_mpq.runtime.session import Session
from tvm_mpq.tensor_spec import TensorSpec

SAMPLES = 33  # not a multiple of the batch
KEYS = {"latency_ms", "storage_bytes", "loss", "baseline", "operators", "environment"}


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return (
        np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))
        + logits.max(1)
        - logits[np.arange(len(labels)), labels]
    )


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(scale=0.3, size=(SAMPLES, FEATURES)).astype(np.float32)
    return {"x": x, "labels": rng.integers(0, CLASSES, SAMPLES)}


@pytest.fixture(scope="module")
def data(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "d.npz"
    np.savez(path, **arrays)
    return open_dataset(path, tiny_package().metadata.inputs, classes=CLASSES)


@pytest.fixture(scope="module")
def unlabelled(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "u.npz"
    np.savez(path, x=arrays["x"])
    return open_dataset(path, tiny_package().metadata.inputs)


@pytest.fixture(scope="module")
def result(data):
    return benchmark(tiny_package(1), data, baseline=tiny_package(0), repeat=5, seed=3)


def test_loss_accuracy_and_change_are_those_of_the_outputs(arrays, result):
    for found, seed in ((result.loss, 1), (result.baseline.loss, 0)):
        logits = expected(arrays["x"], seed)
        assert found.name == "cross-entropy"
        assert found.samples == SAMPLES
        assert found.mean == pytest.approx(cross_entropy(logits, arrays["labels"]).mean(), rel=1e-4)
        assert found.accuracy == pytest.approx((logits.argmax(1) == arrays["labels"]).mean())
    assert result.loss.delta == pytest.approx(result.loss.mean - result.baseline.loss.mean)
    low, high = result.loss.ci95
    assert low < result.loss.delta < high
    assert (result.baseline.loss.delta, result.baseline.loss.ci95) == (None, None)


def test_the_result_has_the_promised_json(data, result):
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found.keys() >= KEYS
    assert found["latency_ms"].keys() == {"median", "p90", "min", "threads"}
    assert 0 < found["latency_ms"]["min"] <= found["latency_ms"]["median"] <= found["latency_ms"]["p90"]
    assert found["storage_bytes"].keys() == {"file", "weights", "weights_resident", "resident"}
    assert found["storage_bytes"]["file"] == len(tiny_package(1).to_bytes())
    assert found["storage_bytes"]["weights"] == FEATURES * CLASSES * 4
    assert found["loss"].keys() == {"name", "mean", "accuracy", "samples", "delta", "ci95"}
    assert found["baseline"].keys() == {"latency_ms", "storage_bytes", "loss"}
    assert found["operators"][0].keys() == {"name", "kind", "asked", "chosen", "executed", "reason"}
    assert {"cpu", "features", "versions", "seed", "hashes"} == found["environment"].keys()
    assert found["environment"]["seed"] == 3
    assert found["environment"]["hashes"]["data"] == data.content_hash()


def test_slower_than_fp32_is_said_and_equal_outputs_are_no_change(data):
    slow, quick = tiny_package(0, 64), tiny_package(0, 1)  # a power of two, so that the division is exact
    result = benchmark(slow, data, baseline=quick, repeat=30)
    assert result.slower
    assert abs(result.loss.delta) < 1e-6
    assert not dataclasses.replace(result, latency_ms=result.baseline.latency_ms).slower


def test_without_a_baseline_the_reason_is_there(data):
    result = benchmark(tiny_package(), data, baseline_reason="it was not compiled", repeat=2)
    assert result.baseline is None
    assert result.baseline_reason == "it was not compiled"
    assert (result.loss.delta, result.loss.ci95, result.slower) == (None, None, False)


def test_kl_is_against_the_outputs_of_fp32(arrays, unlabelled):
    result = benchmark(tiny_package(1), unlabelled, baseline=tiny_package(0), loss="kl", repeat=2)

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))

    p, q = log_softmax(expected(arrays["x"], 0)), log_softmax(expected(arrays["x"], 1))
    assert result.loss.mean == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-4)
    assert result.loss.accuracy is None
    assert result.baseline.loss.mean == 0


def test_a_loss_that_needs_what_is_not_there_is_refused(data, unlabelled):
    with pytest.raises(MpqError, match="kl compares with the fp32 package, which is not there: gone"):
        benchmark(tiny_package(), data, loss="kl", baseline_reason="gone")
    with pytest.raises(MpqError, match="needs labels"):
        benchmark(tiny_package(), unlabelled)


def test_one_sample_has_no_interval(data):
    result = benchmark(tiny_package(1), data.take(1), baseline=tiny_package(0), repeat=1)
    assert result.loss.samples == 1
    assert result.loss.delta is not None
    assert result.loss.ci95 is None


def test_every_sample_counts_once_whatever_the_batch(arrays, data):
    found, _ = evaluate(Session(tiny_package(), 1), None, data, get_loss("cross-entropy"))
    np.testing.assert_allclose(
        found.losses, cross_entropy(expected(arrays["x"]), arrays["labels"]), rtol=1e-3, atol=1e-5
    )
    assert SAMPLES % BATCH == 1


@pytest.mark.parametrize("repeat", [1, 7, 25])
def test_packages_are_timed_in_alternating_blocks(repeat):
    log: list[tuple[str, int]] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.session, self.name = Session(tiny_package(), 1), name

        def time(self, inputs, repeat, warmup):
            log.append((self.name, repeat))
            return self.session.time(inputs, repeat, warmup)

    x = {"x": np.zeros((BATCH, FEATURES), np.float32)}
    a, b = time_in_turns([Recorder("a"), Recorder("b")], x, repeat)
    assert len(a) == len(b) == repeat
    order = "".join(name for name, _ in log)
    assert order == ("abba" * len(log))[: len(log)]
    assert sum(count for name, count in log if name == "a") == repeat


def test_resident_memory_grows_with_what_a_package_holds():
    """A constant of 64 MB must be seen; what a tiny package takes is the floor of the measurement."""
    floor = resident_bytes(tiny_package(), 1)
    big = tiny_package(0, 1, 64 << 20)
    assert floor < 8 << 20
    assert 64 << 20 <= resident_bytes(big, 1) - floor < 4 * (64 << 20)


def other(package: Package, **changes) -> Package:
    return dataclasses.replace(package, metadata=dataclasses.replace(package.metadata, **changes))


def test_a_baseline_of_another_network_is_refused(data):
    shape = other(tiny_package(), inputs=(TensorSpec("x", (BATCH, FEATURES), "float64"),))
    with pytest.raises(MpqError, match="the baseline is of another network"):
        benchmark(tiny_package(), data, baseline=shape)
    hashes = dataclasses.replace(tiny_package().metadata.hashes, model="1" * 64)
    with pytest.raises(MpqError, match="compiled from another ONNX file"):
        benchmark(tiny_package(), data, baseline=other(tiny_package(), hashes=hashes))


def test_the_baseline_is_the_one_beside_or_the_one_given(tmp_path):
    fp32 = tiny_package(0)
    path = tmp_path / "m.tar"
    package = tiny_package(1).with_baseline("m.fp32.tar", fp32.to_bytes())
    package.save(path)
    assert find_baseline(package, path)[0] is None
    assert "m.fp32.tar is not beside" in find_baseline(package, path)[1]
    fp32.save(tmp_path / "m.fp32.tar")
    assert find_baseline(package, path) == (fp32, "")
    tiny_package(2).save(tmp_path / "m.fp32.tar")
    with pytest.raises(MpqError, match="is not the fp32 package that was compiled with"):
        find_baseline(package, path)
    assert find_baseline(package, path, tmp_path / "m.fp32.tar") == (tiny_package(2), "")
    assert "compiled without one" in find_baseline(tiny_package(1), path)[1]
    outside = tiny_package(1).with_baseline("../m.fp32.tar", fp32.to_bytes())
    with pytest.raises(MpqError, match="not a file beside it"):
        find_baseline(outside, path)
