"""The losses as Relax functions: the same values as in NumPy, and gradients that are those of differences."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from frontend_networks import network
from small_networks import node
from tvm import relax

from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import import_onnx
from tvm_mpq.loss import get_loss
from tvm_mpq.sensitivity.gradients import GradientFunction
from tvm_mpq.sensitivity.losses import relax_loss
from tvm_mpq.target import host_target

RNG = np.random.default_rng(0)
VECTORS, PLANES, SEQUENCE = [3, 5], [3, 4, 2, 3], [3, 4, 4]
SENTENCES = np.array([[1, 1, 3], [2, -1, -1], [-1, -1, -1]])


def normalized(x: np.ndarray) -> np.ndarray:
    e = np.exp(x)
    return e / e.sum(axis=1, keepdims=True)


def values(shape: list[int]) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CASES = {
    "cross-entropy": ("cross-entropy", False, 3 * values(VECTORS), np.array([0, 4, 2])),
    "cross-entropy of planes": ("cross-entropy", False, values(PLANES), RNG.integers(0, 4, (3, 2, 3))),
    "cross-entropy of probabilities": (
        "cross-entropy",
        True,
        normalized(values(VECTORS)),
        np.array([1, 0, 3]),
    ),
    "mse": ("mse", False, values(PLANES), values(PLANES)),
    "bce": ("bce", False, 3 * values(VECTORS), RNG.uniform(size=VECTORS).astype(np.float32)),
    "bce of probabilities": ("bce", True, normalized(values(VECTORS)), RNG.integers(0, 2, VECTORS)),
    "kl": ("kl", False, values(PLANES), None),
    "cosine": ("cosine", False, values(PLANES), values(PLANES)),
    "ctc": ("ctc", False, values(SEQUENCE), SENTENCES),
    "ctc of probabilities": ("ctc", True, normalized(values(SEQUENCE).T).T, SENTENCES),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loss_in_relax_is_the_loss_in_numpy_and_has_its_gradient(case: str) -> None:
    name, probabilities, x, labels = CASES[case]
    reference = None if labels is not None else values(list(x.shape))
    # The network is x itself: its gradient by its input is the loss's own.
    mod = import_onnx(
        network([node("Add", "x zero", "y")], {"x": list(x.shape)}, ["y"], {"zero": np.zeros(1, np.float32)})
    )
    function = GradientFunction(
        mod, relax_loss(name, probabilities=probabilities, labels=labels), host_target(), threads=1
    )
    feeds = {"x": x, "labels": labels, "reference.0": reference}
    found, gradients = function({k: v for k, v in feeds.items() if v is not None})

    exact = get_loss(name, probabilities=probabilities)

    def loss(at: np.ndarray) -> np.ndarray:
        return exact.per_sample([at], labels, None if reference is None else [reference])

    np.testing.assert_allclose(found, loss(x), rtol=1e-5, atol=1e-5)
    direction = RNG.standard_normal(x.shape)
    wanted = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    along = (gradients["y:output"] * direction).reshape(len(x), -1).sum(axis=1)
    np.testing.assert_allclose(along, wanted, rtol=1e-4, atol=1e-5)


USER = """
import numpy as np
from tvm import relax
def loss(outputs, labels, reference):
    return np.abs(outputs[0] - labels).sum(axis=1)
loss.needs_labels = True
loss.relax = lambda outputs, labels, reference: relax.op.sum(relax.op.abs(outputs[0] - labels), [1])
def picked(outputs, labels, reference):
    return -outputs[0].reshape(-1)[labels]
picked.needs_labels = True
picked.relax = lambda outputs, labels, reference: relax.op.negative(
    relax.op.take(relax.op.reshape(outputs[0], [-1]), labels, 0))
def plain(outputs, labels, reference):
    return outputs[0].sum(axis=1)
def wrong(outputs, labels, reference):
    return outputs[0].sum(axis=1)
wrong.relax = lambda outputs, labels, reference: relax.op.sum(outputs[0])
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_loss.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    yield "my_loss"
    sys.modules.pop("my_loss", None)


def test_a_users_loss_in_relax(module: str) -> None:
    x, labels = values(VECTORS), values(VECTORS)
    mod = import_onnx(network([node("Relu", "x", "y")], {"x": VECTORS}, ["y"]))
    loss = relax_loss(f"{module}:loss", labels=labels)
    found, gradients = GradientFunction(mod, loss, host_target(), threads=1)({"x": x, "labels": labels})
    y = np.maximum(x, 0)
    np.testing.assert_allclose(found, np.abs(y - labels).sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(gradients["y:output"], np.sign(y - labels))


def test_a_users_loss_may_look_up_by_labels(module: str) -> None:
    x, labels = values(VECTORS), np.array([4, 7, 10])
    mod = import_onnx(network([node("Relu", "x", "y")], {"x": VECTORS}, ["y"]))
    loss = relax_loss(f"{module}:picked", labels=labels)
    found, gradients = GradientFunction(mod, loss, host_target(), threads=1)({"x": x, "labels": labels})
    np.testing.assert_array_equal(found, -np.maximum(x, 0).reshape(-1)[labels])
    expected = np.zeros(x.size)
    expected[labels] = -1
    np.testing.assert_array_equal(gradients["y:output"], expected.reshape(x.shape))


def test_what_is_wrong_with_a_users_loss_is_said(module: str) -> None:
    with pytest.raises(MpqError, match="attribute 'relax'"):
        relax_loss(f"{module}:plain")
    with pytest.raises(MpqError, match="needs labels"):
        relax_loss(f"{module}:loss")
    with pytest.raises(MpqError, match="one value a sample"):
        relax_loss(f"{module}:wrong").function([relax.TensorType([3, 5], "float32")])


def test_outputs_that_do_not_fit_are_named() -> None:
    with pytest.raises(MpqError, match="2 or more classes"):
        relax_loss("cross-entropy").function([relax.TensorType([3, 1], "float32")])
    with pytest.raises(MpqError, match="take 5 positions do not fit ctc of 4"):
        relax_loss("ctc", labels=SENTENCES[:, [0, 0, 1]]).function([relax.TensorType([3, 4, 4], "float32")])
    with pytest.raises(MpqError, match="'ctc' needs labels"):
        relax_loss("ctc")
    with pytest.raises(MpqError, match="unknown loss 'cross'"):
        relax_loss("cross")
