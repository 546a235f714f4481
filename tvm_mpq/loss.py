"""Losses a sample: the built-in ones and a user's own function."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvm_mpq.ctc import connectionist_loss
from tvm_mpq.errors import MpqError

Array = npt.NDArray[Any]
LossFunction = Callable[[list[Array], Array | None, list[Array] | None], Any]

LOSSES = ("cross-entropy", "mse", "bce", "kl", "cosine", "ctc")
# A float32 softmax underflows to 0; log of the smallest normal float32 keeps the loss of that finite.
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Loss:
    """A loss and what it needs; made by :func:`get_loss`."""

    name: str
    function: LossFunction
    needs_labels: bool
    needs_reference: bool
    classification: bool
    """Whether labels are class indices, so that accuracy has a meaning too."""

    def per_sample(
        self,
        outputs: Sequence[Array],
        labels: Array | None,
        reference: Sequence[Array] | None = None,
    ) -> npt.NDArray[np.float64]:
        """The loss of each sample, float64 [n]; built-in losses compute in float64.

        ``outputs`` are the network's outputs, each [n, …]; ``labels`` [n, …]; ``reference`` the outputs of
        the fp32 network. Losses against labels use the first output; kl sums over all of them.
        Raises MpqError where labels or reference are needed and missing or do not fit, where a user's
        function fails, and where a loss is NaN or infinite.
        """
        if self.needs_labels and labels is None:
            raise MpqError(
                f"loss {self.name!r} needs labels and the data has none: add them or use --loss kl"
            )
        if self.needs_reference and reference is None:
            raise MpqError(f"loss {self.name!r} needs the outputs of the fp32 network as a reference")
        samples = len(outputs[0])
        values = self.function(list(outputs), labels, None if reference is None else list(reference))
        return self._checked(values, samples)

    def _checked(self, values: Any, samples: int) -> npt.NDArray[np.float64]:
        try:
            result = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            raise MpqError(f"loss {self.name!r} must return numbers, not {type(values).__name__}") from None
        if result.shape != (samples,):
            raise MpqError(
                f"loss {self.name!r} must return one value a sample, [{samples}], not {list(result.shape)}"
            )
        bad = np.flatnonzero(~np.isfinite(result))
        if len(bad):
            raise MpqError(
                f"loss {self.name!r} is {result[bad[0]]} for sample {bad[0]} of a batch of {samples}: "
                "look for NaN or infinity in the network's outputs"
            )
        return result


def get_loss(name: str, *, probabilities: bool = False) -> Loss:
    """The loss called ``name``: one of :data:`LOSSES`, or ``module:function``.

    - cross-entropy: -log softmax(logits)[label]; output [n, classes, d…], labels [n, d…], mean over d….
    - mse: mean over an output's elements of (output - label)².
    - bce: binary cross-entropy with logits; labels in [0, 1] of the output's shape, mean over elements.
    - cosine: 1 - cosine of the angle between an output and its label, each as one vector; labels of the output's shape.
    - ctc: -log of the probability of a sequence of labels in any alignment; output [n, positions, classes] of logits,
      class 0 the blank, labels [n, length], -1 behind those of a shorter sequence (:mod:`tvm_mpq.ctc`).
    - kl: KL(fp32 ‖ output) of the softmax over axis 1, mean over positions, sum over outputs; no labels.

    ``probabilities`` says that the network itself ends in a softmax (or sigmoid, for bce), so that its
    outputs are not logits.

    A user's function gets (outputs: list of [n, …], labels or None, reference or None) and returns [n]. Its
    attributes ``needs_labels``, ``needs_reference`` and ``classification`` (default False) say what to insist
    on. It is imported with the current folder on the path. Raises MpqError for an unknown name and for a
    function that cannot be imported.
    """
    if ":" in name:
        return _user_loss(name)
    if name == "cross-entropy":
        return Loss(name, _CrossEntropy(probabilities), True, False, True)
    if name == "mse":
        return Loss(name, _mse, True, False, False)
    if name == "bce":
        return Loss(name, _BinaryCrossEntropy(probabilities), True, False, False)
    if name == "kl":
        return Loss(name, _KullbackLeibler(probabilities), False, True, False)
    if name == "cosine":
        return Loss(name, _cosine, True, False, False)
    if name == "ctc":
        return Loss(name, _Ctc(probabilities), True, False, False)
    near = difflib.get_close_matches(name, LOSSES, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise MpqError(f"unknown loss {name!r}: use {', '.join(LOSSES)} or module:function{hint}")


class _OfKind(Protocol):
    @property
    def kind(self) -> str: ...


def gives_probabilities(operators: Sequence[_OfKind]) -> bool:
    """Whether a network of these ``operators``, in order, ends in a softmax or sigmoid, reshaped or not."""
    last = next((o.kind for o in reversed(operators) if o.kind not in ("reshape", "permute_dims")), "")
    return last in ("softmax", "sigmoid")


def divergence(loss: Loss, probabilities: bool) -> Loss | None:
    """How far outputs are from fp32's, in the unit of ``loss`` and without labels; None where there is no such thing.

    Where fp32 tells the truth, that is where labels are drawn from what it predicts (around what it predicts), this is
    the expected change of the loss: KL(fp32 ‖ output) for cross-entropy, the squared distance for mse. What is left of
    a measured change is the covariance of fp32's own errors with the change of the outputs.
    """
    if loss.name == "cross-entropy":
        return get_loss("kl", probabilities=probabilities)
    if loss.name == "mse":
        return Loss("mse to fp32", _squared_distance, False, True, False)
    return None


def top1(outputs: Sequence[Array], labels: Array) -> npt.NDArray[np.float64]:
    """The share of each sample's positions whose largest class is the label, float64 [n]: 1 or 0 without d….

    The first output [n, classes, d…] counts; ties go to the lower class. Raises MpqError as cross-entropy.
    """
    logits = _class_axis(outputs[0], "accuracy")
    wanted = _labels_at_positions(labels, logits, "accuracy")
    return _mean_over_positions((logits.argmax(axis=1) == wanted).astype(np.float64))


@dataclass(frozen=True)
class _CrossEntropy:
    probabilities: bool

    def __call__(
        self, outputs: list[Array], labels: Array | None, reference: list[Array] | None
    ) -> npt.NDArray[np.float64]:
        assert labels is not None
        output = _class_axis(outputs[0], "cross-entropy")
        wanted = _labels_at_positions(labels, output, "cross-entropy")
        logs = _log_softmax(output, self.probabilities)
        return _mean_over_positions(-np.take_along_axis(logs, wanted[:, None], axis=1)[:, 0])


@dataclass(frozen=True)
class _KullbackLeibler:
    probabilities: bool

    def __call__(
        self, outputs: list[Array], labels: Array | None, reference: list[Array] | None
    ) -> npt.NDArray[np.float64]:
        assert reference is not None
        if [o.shape for o in outputs] != [r.shape for r in reference]:
            raise MpqError("loss 'kl' needs a reference of the same shapes as the outputs")
        total = np.zeros(len(outputs[0]))
        for output, exact in zip(outputs, reference, strict=True):
            logs = _log_softmax(_class_axis(output, "kl"), self.probabilities)
            exact_logs = _log_softmax(exact, self.probabilities)
            divergence = (np.exp(exact_logs) * (exact_logs - logs)).sum(axis=1)
            # It is never negative; rounding can make that of equal outputs -1e-17.
            total += _mean_over_positions(np.maximum(divergence, 0.0))
        return total


@dataclass(frozen=True)
class _BinaryCrossEntropy:
    probabilities: bool

    def __call__(
        self, outputs: list[Array], labels: Array | None, reference: list[Array] | None
    ) -> npt.NDArray[np.float64]:
        x, y = _same_elements(outputs[0], labels, "bce")
        if ((y < 0) | (y > 1)).any():
            raise MpqError("loss 'bce' needs labels from 0 to 1")
        if self.probabilities:
            terms = -(y * np.log(np.maximum(x, _SMALLEST)) + (1 - y) * np.log(np.maximum(1 - x, _SMALLEST)))
        else:
            # -y log σ(x) - (1 - y) log(1 - σ(x)) without an exp that can overflow.
            terms = np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))
        return _mean_over_positions(terms)


@dataclass(frozen=True)
class _Ctc:
    probabilities: bool

    def __call__(
        self, outputs: list[Array], labels: Array | None, reference: list[Array] | None
    ) -> npt.NDArray[np.float64]:
        assert labels is not None
        output = outputs[0]
        if output.ndim != 3 or output.shape[2] < 2:
            raise MpqError(f"ctc needs an output [n, positions, classes], not {list(output.shape)}")
        logs = _log_softmax(output.transpose(0, 2, 1), self.probabilities)
        return connectionist_loss(logs.transpose(0, 2, 1), labels)


def _mse(
    outputs: list[Array], labels: Array | None, reference: list[Array] | None
) -> npt.NDArray[np.float64]:
    x, y = _same_elements(outputs[0], labels, "mse")
    return _mean_over_positions((x - y) ** 2)


def _cosine(
    outputs: list[Array], labels: Array | None, reference: list[Array] | None
) -> npt.NDArray[np.float64]:
    x, y = (values.reshape(len(values), -1) for values in _same_elements(outputs[0], labels, "cosine"))
    lengths = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.asarray(1.0 - (x * y).sum(axis=1) / np.maximum(lengths, _SMALLEST), np.float64)


def _squared_distance(
    outputs: list[Array], labels: Array | None, reference: list[Array] | None
) -> npt.NDArray[np.float64]:
    assert reference is not None
    return _mse(outputs, reference[0], None)


def _log_softmax(output: Array, probabilities: bool) -> npt.NDArray[np.float64]:
    """log softmax over axis 1; of the logarithm for probabilities, which also makes them sum to exactly 1."""
    x = output.astype(np.float64)
    if probabilities:
        x = np.log(np.maximum(x, _SMALLEST))
    x = x - x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)), np.float64)


def _mean_over_positions(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values.reshape(len(values), -1).mean(axis=1)


def _class_axis(output: Array, loss: str) -> Array:
    if output.ndim < 2 or output.shape[1] < 2:
        raise MpqError(
            f"{loss} needs an output [n, classes, …] with 2 or more classes, not {list(output.shape)}: "
            "use --loss mse, bce or module:function"
        )
    return output


def _labels_at_positions(labels: Array, output: Array, loss: str) -> npt.NDArray[np.int64]:
    """Labels as int64 [n, d…] for an output [n, classes, d…]."""
    shape = (output.shape[0], *output.shape[2:])
    if labels.size != int(np.prod(shape)) or len(labels) != shape[0]:
        raise MpqError(
            f"labels {list(labels.shape)} do not fit {loss} of an output {list(output.shape)}: "
            f"expected {list(shape)}"
        )
    wanted = labels.reshape(shape)
    outside = (wanted < 0) | (wanted >= output.shape[1]) | (wanted != np.floor(wanted))
    if outside.any():
        raise MpqError(
            f"label {wanted[outside][0]} does not fit {loss}: classes are 0 to {output.shape[1] - 1} here"
        )
    return wanted.astype(np.int64)


def _same_elements(
    output: Array, labels: Array | None, loss: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Output and labels as float64 of the output's shape."""
    assert labels is not None
    if labels.size != output.size or len(labels) != len(output):
        raise MpqError(f"labels {list(labels.shape)} do not fit {loss} of an output {list(output.shape)}")
    return output.astype(np.float64), labels.astype(np.float64).reshape(output.shape)


def _user_loss(name: str) -> Loss:
    module_name, _, attribute = name.partition(":")
    function = import_function(name, module_name, attribute)

    def guarded(outputs: list[Array], labels: Array | None, reference: list[Array] | None) -> Any:
        try:
            return function(outputs, labels, reference)
        except MpqError:
            raise
        except Exception as error:
            raise MpqError(f"loss {name!r} failed: {_one_line(error)}") from error

    needs = {
        key: bool(getattr(function, key, False))
        for key in ("needs_labels", "needs_reference", "classification")
    }
    return Loss(name, guarded, **needs)


def import_function(name: str, module_name: str, attribute: str) -> Callable[..., Any]:
    """The function ``attribute`` of a module, for the loss ``name``; raises MpqError where there is none."""
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise MpqError(f"loss {name!r} is not of the form module:function")
    here = str(Path.cwd())
    # At the end of the path, so that nothing in the user's folder can hide an installed module.
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise MpqError(f"cannot import {module_name!r} for loss {name!r}: {_one_line(error)}") from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        near = difflib.get_close_matches(
            attribute, [n for n in dir(module) if callable(getattr(module, n))], 1
        )
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MpqError(f"module {module_name!r} has no function {attribute!r} for loss {name!r}{hint}")
    return function


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
