"""The losses of ``tvm_mpq.loss`` as Relax functions, so that they have gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax import op

from tvm_mpq.ctc import checked_labels
from tvm_mpq.errors import MpqError
from tvm_mpq.loss import LOSSES, get_loss, import_function
from tvm_mpq.sensitivity.ctc import connectionist_loss
from tvm_mpq.transform.operator_body import shape_of

Outputs = Sequence[relax.Var]
Expression = Callable[[relax.BlockBuilder, Outputs, relax.Var | None, Outputs], relax.Expr]
"""builder, outputs, labels, reference → the loss of each sample, float32 [n]."""

# log of the smallest normal float32 keeps the loss of a probability that underflowed finite.
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class RelaxLoss:
    """A loss with a gradient; made by :func:`relax_loss`."""

    name: str
    expression: Expression
    labels: Callable[[tuple[int, ...]], tuple[tuple[int, ...], str]] | None
    """Shape of the first output → shape and dtype of the labels; None where the loss needs none."""
    needs_reference: bool
    probabilities: bool = False
    """Whether outputs are probabilities already."""
    curvature: RelaxLoss | None = None
    """For a loss that is stationary in fp32, one whose squared gradient is its curvature there: the negative log
    likelihood of labels drawn from the fp32 network's own probabilities."""

    def function(self, outputs: Sequence[relax.TensorType]) -> relax.Function:
        """(outputs…[, labels][, reference…]) → [n], for outputs of these types.

        The parameters behind the outputs are called ``labels`` and ``reference.0``, …. Raises MpqError for outputs
        that the loss does not fit.
        """
        parameters = [relax.Var(f"output.{i}", ty) for i, ty in enumerate(outputs)]
        for i, ty in enumerate(outputs):
            if str(ty.dtype) != "float32" or len(ty.shape) == 0:
                raise MpqError(
                    f"the loss needs outputs of floats with a batch axis; output {i} is {ty.dtype}{list(ty.shape)}"
                )
        labels, reference = None, []
        if self.labels is not None:
            shape, dtype = self.labels(shape_of(parameters[0]))
            labels = relax.Var("labels", relax.TensorType(shape, dtype))
        if self.needs_reference:
            reference = [relax.Var(f"reference.{i}", ty) for i, ty in enumerate(outputs)]
        builder = relax.BlockBuilder()
        everything = [*parameters, *([] if labels is None else [labels]), *reference]
        with builder.function("loss", everything, private=True):
            with builder.dataflow():
                result = builder.emit_output(self.expression(builder, parameters, labels, reference))
            builder.emit_func_output(result)
        return builder.get()["loss"]


def relax_loss(
    name: str, *, probabilities: bool = False, labels: npt.NDArray[Any] | None = None
) -> RelaxLoss:
    """The loss ``name`` of :func:`tvm_mpq.loss.get_loss`, which defines it, as a Relax function.

    A user's ``module:function`` has an attribute ``relax``: a function of the same three arguments, as Relax
    expressions, that returns a Relax expression of shape [n]. ``labels`` are those of the data, which ctc and a user's
    function need: of a user's only the shape and dtype are looked at. Raises MpqError for a name that it does not know,
    for labels that these two lack, and for a user's function without ``relax``.
    """
    if ":" in name:
        return _user_loss(name, labels)
    if name == "cross-entropy":
        return RelaxLoss(name, _cross_entropy(probabilities), _class_labels, False, probabilities)
    if name == "mse":
        return RelaxLoss(name, _mse, _same_labels, False)
    if name == "bce":
        return RelaxLoss(name, _binary_cross_entropy(probabilities), _same_labels, False, probabilities)
    if name == "cosine":
        return RelaxLoss(name, _cosine, _same_labels, False)
    if name == "ctc":
        if labels is None:
            raise MpqError("loss 'ctc' needs labels and the data has none")
        return RelaxLoss(name, _ctc(probabilities), _sequences(labels), False, probabilities)
    if name == "kl":
        likelihood = relax_loss("cross-entropy", probabilities=probabilities)
        return RelaxLoss(name, _kullback_leibler(probabilities), None, True, probabilities, likelihood)
    get_loss(name)
    raise MpqError(f"the loss {name!r} has no gradient: use {', '.join(LOSSES)} or module:function")


def is_likelihood(loss: RelaxLoss) -> bool:
    """Whether the loss, or the one that is its curvature, is the negative log likelihood of a class."""
    return (loss if loss.curvature is None else loss.curvature).name == "cross-entropy"


def drawn_loss(loss: RelaxLoss) -> RelaxLoss:
    """The negative log likelihood of a class that the network itself draws, from what it predicts for each position.

    What is given as ``labels``, float32 of the output's shape, is independent standard Gumbel noise: the class whose
    log probability and noise add to the most is drawn as often as it is probable. Raises MpqError for losses that
    cross-entropy is not the likelihood of.
    """
    if not is_likelihood(loss):
        raise MpqError(f"labels can be drawn for the losses cross-entropy and kl, not for {loss.name!r}")

    def expression(
        builder: relax.BlockBuilder, outputs: Outputs, noise: relax.Var | None, reference: Outputs
    ) -> relax.Expr:
        logs = _log_softmax(builder, outputs[0], loss.probabilities)
        perturbed = builder.emit(logs + noise)
        drawn = builder.emit(op.equal(perturbed, builder.emit(op.max(perturbed, [1], keepdims=True))))
        chosen = builder.emit(op.where(drawn, logs, relax.const(0.0, "float32")))
        return op.negative(_mean_over_positions(builder, builder.emit(op.sum(chosen, [1]))))

    def noise(shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
        _class_labels(shape)
        return shape, "float32"

    return RelaxLoss("drawn", expression, noise, False, loss.probabilities)


def _user_loss(name: str, labels: npt.NDArray[Any] | None) -> RelaxLoss:
    module, _, attribute = name.partition(":")
    function = import_function(name, module, attribute)
    relaxed = getattr(function, "relax", None)
    if not callable(relaxed):
        raise MpqError(
            f"loss {name!r} has no gradient: give the function an attribute 'relax' that computes it in Relax operators"
        )
    needs_labels = bool(getattr(function, "needs_labels", False))
    if needs_labels and labels is None:
        raise MpqError(f"loss {name!r} needs labels and the data has none")

    def expression(
        builder: relax.BlockBuilder, outputs: Outputs, given: relax.Var | None, reference: Outputs
    ) -> relax.Expr:
        try:
            value = builder.emit(relaxed(list(outputs), given, list(reference) or None))
        except Exception as error:
            raise MpqError(f"loss {name!r} failed: {type(error).__name__}: {error}") from error
        if shape_of(value) != shape_of(outputs[0])[:1]:
            raise MpqError(f"loss {name!r} must return one value a sample, not {list(shape_of(value))}")
        return value

    def label_type(shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
        assert labels is not None
        return (shape[0], *labels.shape[1:]), "float32" if labels.dtype.kind == "f" else "int64"

    return RelaxLoss(
        name,
        expression,
        label_type if needs_labels else None,
        bool(getattr(function, "needs_reference", False)),
    )


def _class_labels(shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    if len(shape) < 2 or shape[1] < 2:
        raise MpqError(
            f"cross-entropy needs an output [n, classes, …] with 2 or more classes, not {list(shape)}"
        )
    return (shape[0], *shape[2:]), "int64"


def _same_labels(shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    return shape, "float32"


def _cross_entropy(probabilities: bool) -> Expression:
    def expression(
        builder: relax.BlockBuilder, outputs: Outputs, labels: relax.Var | None, reference: Outputs
    ) -> relax.Expr:
        logs = _log_softmax(builder, outputs[0], probabilities)
        shape = shape_of(logs)
        classes = np.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
        wanted = builder.emit(op.equal(op.expand_dims(labels, 1), relax.const(classes)))
        chosen = builder.emit(op.where(wanted, logs, relax.const(0.0, "float32")))
        return op.negative(_mean_over_positions(builder, builder.emit(op.sum(chosen, [1]))))

    return expression


def _binary_cross_entropy(probabilities: bool) -> Expression:
    def expression(
        builder: relax.BlockBuilder, outputs: Outputs, labels: relax.Var | None, reference: Outputs
    ) -> relax.Expr:
        x, y = outputs[0], labels
        one, tiny = relax.const(1.0, "float32"), relax.const(_SMALLEST, "float32")
        if probabilities:
            yes = builder.emit(op.log(op.maximum(x, tiny)))
            no = builder.emit(op.log(op.maximum(one - x, tiny)))
            terms = op.negative(y * yes + (one - y) * no)
        else:
            tail = builder.emit(op.log(op.exp(op.negative(op.abs(x))) + one))
            terms = op.maximum(x, relax.const(0.0, "float32")) - x * y + tail
        return _mean_over_positions(builder, builder.emit(terms))

    return expression


def _kullback_leibler(probabilities: bool) -> Expression:
    def expression(
        builder: relax.BlockBuilder, outputs: Outputs, labels: relax.Var | None, reference: Outputs
    ) -> relax.Expr:
        total: relax.Var | None = None
        for output, exact in zip(outputs, reference, strict=True):
            logs, exact_logs = (_log_softmax(builder, each, probabilities) for each in (output, exact))
            terms = builder.emit(op.exp(exact_logs) * (exact_logs - logs))
            divergence = builder.emit(_mean_over_positions(builder, builder.emit(op.sum(terms, [1]))))
            total = divergence if total is None else builder.emit(total + divergence)
        assert total is not None
        return total

    return expression


def _sequences(labels: npt.NDArray[Any]) -> Callable[[tuple[int, ...]], tuple[tuple[int, ...], str]]:
    length = math.prod(labels.shape[1:])

    def label_type(shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
        if len(shape) != 3 or shape[2] < 2:
            raise MpqError(f"ctc needs an output [n, positions, classes], not {list(shape)}")
        checked_labels(labels, *shape[1:])
        return (shape[0], length), "int64"

    return label_type


def _ctc(probabilities: bool) -> Expression:
    def expression(
        builder: relax.BlockBuilder, outputs: Outputs, labels: relax.Var | None, reference: Outputs
    ) -> relax.Expr:
        return connectionist_loss(builder, _log_softmax(builder, outputs[0], probabilities, 2), labels)

    return expression


def _cosine(
    builder: relax.BlockBuilder, outputs: Outputs, labels: relax.Var | None, reference: Outputs
) -> relax.Expr:
    shape = shape_of(outputs[0])
    x, y = (builder.emit(op.reshape(each, (shape[0], math.prod(shape[1:])))) for each in (outputs[0], labels))
    products = [builder.emit(op.sum(builder.emit(a * b), [1])) for a, b in ((x, y), (x, x), (y, y))]
    lengths = builder.emit(op.maximum(op.sqrt(products[1] * products[2]), relax.const(_SMALLEST, "float32")))
    return relax.const(1.0, "float32") - builder.emit(products[0] / lengths)


def _mse(
    builder: relax.BlockBuilder, outputs: Outputs, labels: relax.Var | None, reference: Outputs
) -> relax.Expr:
    difference = builder.emit(outputs[0] - labels)
    return _mean_over_positions(builder, builder.emit(difference * difference))


def _log_softmax(
    builder: relax.BlockBuilder, output: relax.Expr, probabilities: bool, axis: int = 1
) -> relax.Var:
    if probabilities:
        output = builder.emit(op.log(op.maximum(output, relax.const(_SMALLEST, "float32"))))
    return builder.emit(op.nn.log_softmax(output, axis))


def _mean_over_positions(builder: relax.BlockBuilder, values: relax.Var) -> relax.Var:
    shape = shape_of(values)
    if len(shape) == 1:
        return values
    flat = builder.emit(op.reshape(values, (shape[0], math.prod(shape[1:]))))
    return builder.emit(op.mean(flat, [1]))
