"""Losses against direct formulas in exact-enough arithmetic, and what users can get wrong."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvm_mpq.errors import MpqError
from tvm_mpq.loss import LOSSES, get_loss, top1

# A busy machine is not a failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

finite = st.floats(-50, 50, width=32)


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(v) for v in row]
    return [e / math.fsum(exps) for e in exps]


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=finite), st.data())
def test_cross_entropy_is_minus_the_log_of_the_softmax(logits: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.int64, len(logits), elements=st.integers(0, logits.shape[1] - 1)))
    got = get_loss("cross-entropy").per_sample([logits], labels)
    want = [-math.log(softmax(row)[label]) for row, label in zip(logits.tolist(), labels, strict=True)]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 5)), elements=finite), st.data())
def test_kl_is_the_sum_of_p_log_p_over_q_and_zero_only_for_equal_outputs(
    reference: np.ndarray, data: st.DataObject
) -> None:
    output = data.draw(hnp.arrays(np.float32, reference.shape, elements=finite))
    loss = get_loss("kl")
    got = loss.per_sample([output], None, [reference])
    want = []
    for p_row, q_row in zip(reference.tolist(), output.tolist(), strict=True):
        p, q = softmax(p_row), softmax(q_row)
        want.append(math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-12)
    assert (got >= 0).all()
    assert loss.per_sample([output], None, [output]) == pytest.approx(0.0, abs=1e-12)


@given(
    hnp.arrays(np.float32, st.integers(1, 6), elements=finite),
    st.floats(0, 1),
)
def test_bce_is_the_cross_entropy_of_two_outcomes(logits: np.ndarray, y: float) -> None:
    labels = np.full(len(logits), y)
    got = get_loss("bce").per_sample([logits[:, None]], labels)
    want = [y * math.log1p(math.exp(-x)) + (1 - y) * math.log1p(math.exp(x)) for x in logits.tolist()]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_cosine_is_one_minus_the_cosine_of_the_angle() -> None:
    output = np.array([[[3.0, 4.0]], [[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]], np.float32)
    labels = np.array([[6.0, 8.0], [0.0, 2.0], [-2.0, -2.0], [1.0, 0.0]])
    got = get_loss("cosine").per_sample([output], labels)
    np.testing.assert_allclose(got, [0.0, 1.0, 2.0, 1.0], atol=1e-12)


def spoken(path: tuple[int, ...]) -> list[int]:
    """What a path of classes says: equal neighbours are one, blanks are nothing."""
    return [c for c, before in zip(path, (0, *path), strict=False) if c not in (0, before)]


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("labels", [[1, 2], [1, 1], [2, -1], [-1, -1]])
def test_ctc_is_the_sum_over_all_alignments(labels: list[int], probabilities: bool) -> None:
    positions, classes = 5, 3
    logits = np.random.default_rng(len(labels)).normal(size=(2, positions, classes)).astype(np.float32)
    p = np.array([[softmax(row) for row in sample] for sample in logits.tolist()])
    wanted = [label for label in labels if label > 0]
    paths = [path for path in itertools.product(range(classes), repeat=positions) if spoken(path) == wanted]
    expected = [
        -math.log(math.fsum(math.prod(sample[range(positions), path]) for path in paths)) for sample in p
    ]
    output = p.astype(np.float32) if probabilities else logits
    got = get_loss("ctc", probabilities=probabilities).per_sample([output], np.array([labels, labels]))
    np.testing.assert_allclose(got, expected, rtol=1e-5 if probabilities else 1e-9)


def test_ctc_stays_finite_over_many_positions() -> None:
    output = np.zeros((1, 500, 30), np.float32)
    output[..., 0] = 60.0
    loss = get_loss("ctc").per_sample([output], np.array([[1, 2, 3]]))
    # Three labels among 500 blanks: one way in e^60 for each, at any three places and a little more.
    assert 3 * 60 - math.log(math.comb(502, 3)) < loss[0] < 3 * 60


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 1, 1]], "take 5 positions do not fit ctc of 4 positions"),
        ([[0, 1]], "label 0 does not fit ctc: classes are 1 to 2 here, 0 is blank"),
        ([[3]], "label 3 does not fit ctc"),
        ([[1.5]], "label 1.5 does not fit ctc"),
        ([[-1, 1]], "-1 behind the others"),
        ([1], "ctc needs labels \\[1, length\\], not \\[1\\]"),
    ],
)
def test_labels_that_ctc_cannot_use_are_an_error(labels: list[list[float]], message: str) -> None:
    with pytest.raises(MpqError, match=message):
        get_loss("ctc").per_sample([np.zeros((1, 4, 3), np.float32)], np.array(labels))
    with pytest.raises(MpqError, match="ctc needs an output"):
        get_loss("ctc").per_sample([np.zeros((1, 3), np.float32)], np.array([[1]]))


def test_extreme_logits_stay_finite() -> None:
    logits = np.array([[3e38, -3e38], [-1e4, 1e4]], np.float32)
    labels = np.array([1, 1])
    assert get_loss("cross-entropy").per_sample([logits], labels) == pytest.approx([6e38, 0.0])
    bce = get_loss("bce").per_sample([np.array([[-1e4], [1e4]], np.float32)], labels)
    assert bce == pytest.approx([1e4, 0.0])


def test_positions_are_averaged() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 3, 4, 5)).astype(np.float32)
    labels = generator.integers(0, 3, (2, 4, 5))
    loss = get_loss("cross-entropy")
    per_position = [
        np.mean(
            [
                loss.per_sample([logits[n, :, i, j][None]], labels[n, i, j][None])
                for i in range(4)
                for j in range(5)
            ]
        )
        for n in range(2)
    ]
    assert loss.per_sample([logits], labels) == pytest.approx(per_position)
    assert top1([logits], labels) == pytest.approx((logits.argmax(1) == labels).mean(axis=(1, 2)))


def test_mse_is_the_mean_over_elements_and_takes_labels_of_equal_size() -> None:
    output = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    labels = np.array([[0.0, 2.0], [1.0, 1.0]])
    assert get_loss("mse").per_sample([output], labels) == pytest.approx([0.5, 10.0])
    assert get_loss("mse").per_sample([output[:, :1]], np.array([0.0, 1.0])) == pytest.approx([1.0, 4.0])


def test_kl_sums_over_outputs() -> None:
    generator = np.random.default_rng(1)
    first, second, other = (generator.normal(size=(3, 4)) for _ in range(3))
    kl = get_loss("kl")
    both = kl.per_sample([first, second], None, [other, other])
    assert both == pytest.approx(
        kl.per_sample([first], None, [other]) + kl.per_sample([second], None, [other])
    )


@pytest.mark.parametrize("name", ["cross-entropy", "kl"])
def test_probabilities_give_the_loss_of_their_logits(name: str) -> None:
    generator = np.random.default_rng(2)
    logits, reference = generator.normal(size=(2, 5, 4))
    probabilities, exact = (np.array([softmax(row) for row in x]) for x in (logits, reference))
    labels = np.array([0, 1, 2, 3, 0])
    want = get_loss(name).per_sample([logits], labels, [reference])
    got = get_loss(name, probabilities=True).per_sample([probabilities], labels, [exact])
    assert got == pytest.approx(want)


def test_probabilities_of_exactly_zero_and_one_stay_finite() -> None:
    one_hot = np.array([[1.0, 0.0]], np.float32)
    assert 80 < get_loss("cross-entropy", probabilities=True).per_sample([one_hot], np.array([1]))[0] < 100
    bce = get_loss("bce", probabilities=True)
    assert bce.per_sample([np.array([[1.0]])], np.array([1.0])) == pytest.approx([0.0])
    assert 80 < bce.per_sample([np.array([[1.0]])], np.array([0.0]))[0] < 100


def test_top1_counts_right_answers() -> None:
    logits = np.array([[0.0, 1.0], [3.0, 1.0], [1.0, 2.0]], np.float32)
    assert top1([logits], np.array([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "needs_labels", "needs_reference", "classification"),
    [
        ("cross-entropy", True, False, True),
        ("mse", True, False, False),
        ("bce", True, False, False),
        ("kl", False, True, False),
    ],
)
def test_a_loss_says_what_it_needs(
    name: str, needs_labels: bool, needs_reference: bool, classification: bool
) -> None:
    loss = get_loss(name)
    assert (loss.name, loss.needs_labels, loss.needs_reference) == (name, needs_labels, needs_reference)
    assert loss.classification is classification
    with pytest.raises(MpqError, match="needs labels" if needs_labels else "needs the outputs of the fp32"):
        loss.per_sample([np.zeros((2, 2))], None, None)
    assert name in LOSSES


def refused(
    name: str, output: np.ndarray, labels: np.ndarray | None, reference: np.ndarray | None = None
) -> str:
    with pytest.raises(MpqError) as caught:
        get_loss(name).per_sample([output], labels, None if reference is None else [reference])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    assert "labels [2, 3] do not fit" in refused("cross-entropy", np.zeros((2, 4)), np.zeros((2, 3), int))
    assert "label 4" in refused("cross-entropy", np.zeros((2, 4)), np.array([0, 4]))
    assert "label -1" in refused("cross-entropy", np.zeros((2, 4)), np.array([-1, 0]))
    assert "label 0.5" in refused("cross-entropy", np.zeros((2, 4)), np.array([0.5, 0.0]))
    assert "2 or more classes" in refused("cross-entropy", np.zeros((2, 1)), np.array([0, 0]))
    assert "2 or more classes" in refused("kl", np.zeros((2,)), None, np.zeros((2,)))
    assert "same shapes" in refused("kl", np.zeros((2, 3)), None, np.zeros((2, 4)))
    assert "do not fit mse" in refused("mse", np.zeros((2, 3)), np.zeros(2))
    assert "from 0 to 1" in refused("bce", np.zeros((2, 1)), np.array([0, 2]))
    bad = np.array([[0.0, 1.0], [np.nan, 0.0]])
    assert "is nan for sample 1" in refused("cross-entropy", bad, np.array([0, 0]))


def test_an_unknown_loss_names_the_near_one() -> None:
    with pytest.raises(MpqError, match=r"unknown loss 'cross_entropy'.*did you mean 'cross-entropy'"):
        get_loss("cross_entropy")


USER_MODULE = """
import numpy as np
def hinge(outputs, labels, reference):
    rows = np.arange(len(labels))
    margin = outputs[0] - outputs[0][rows, labels][:, None] + 1
    margin[rows, labels] = 0
    return np.maximum(margin, 0).sum(axis=1)
hinge.needs_labels = True
def distance(outputs, labels, reference):
    return np.abs(outputs[0] - reference[0]).sum(axis=1)
def scalar(outputs, labels, reference):
    return 1.0
def text(outputs, labels, reference):
    return ["a"] * len(outputs[0])
def fails(outputs, labels, reference):
    raise KeyError("two\\nlines")
constant = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mpq_user_losses.py").write_text(USER_MODULE)
    (tmp_path / "mpq_broken_losses.py").write_text("import mpq_no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mpq_user_losses", raising=False)
    return "mpq_user_losses"


def test_a_users_function_is_found_in_the_current_folder(user_module: str) -> None:
    before = list(sys.path)
    hinge = get_loss(f"{user_module}:hinge")
    assert sys.path == before
    assert (hinge.needs_labels, hinge.needs_reference, hinge.classification) == (True, False, False)
    output = np.array([[2.0, 0.0, 1.5], [0.0, 0.0, 0.0]], np.float32)
    got = hinge.per_sample([output], np.array([0, 1]))
    assert got.dtype == np.float64
    assert got == pytest.approx([0.5, 2.0])
    distance = get_loss(f"{user_module}:distance").per_sample([output], None, [output + 1])
    assert distance == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mpq_user_losses:hinges", "no function 'hinges'.*did you mean 'hinge'"),
        ("mpq_user_losses:constant", "no function 'constant'"),
        ("mpq_missing:loss", "cannot import 'mpq_missing'.*ModuleNotFoundError"),
        ("mpq_broken_losses:loss", "cannot import 'mpq_broken_losses'.*mpq_no_such_module"),
        ("mpq_user_losses:", "not of the form module:function"),
        ("../evil:loss", "not of the form module:function"),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_line(user_module: str, name: str, line: str) -> None:
    with pytest.raises(MpqError, match=line) as caught:
        get_loss(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("scalar", r"one value a sample, \[2\], not \[\]"),
        ("text", "must return numbers"),
        ("fails", "failed: KeyError"),
    ],
)
def test_a_users_function_that_misbehaves_is_named(user_module: str, function: str, line: str) -> None:
    loss = get_loss(f"{user_module}:{function}")
    with pytest.raises(MpqError, match=line) as caught:
        loss.per_sample([np.zeros((2, 2))], None)
    assert "\n" not in str(caught.value)
