"""The first and second moments of the loss's gradient in front of each operator's activation, channel by channel.

    second[o] = E_samples Σ_positions (∂loss/∂z_o)²,   z = W ∗ x + b,   y = activation(z)

With labels drawn from the network's own predictions, ``second`` is the diagonal of the Fisher information by z: half of
it times an error of z is what the error costs where nothing is lost at first order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax
from tvm.relax import op
from tvm.runtime import tensor

from tvm_mpq.build import build
from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.sensitivity.adjoint import gate
from tvm_mpq.sensitivity.backward import LOSS, Differentiated, add_gradients
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder, one_call
from tvm_mpq.sensitivity.collection import Feeds
from tvm_mpq.sensitivity.fp32_outputs import fp32_outputs
from tvm_mpq.sensitivity.losses import RelaxLoss, drawn_loss
from tvm_mpq.target import Target
from tvm_mpq.tensor_spec import TensorSpec
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.annotate import WEIGHTED_KINDS
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.change_weights import dequantized
from tvm_mpq.transform.lift_constants import LiftConstants
from tvm_mpq.transform.operator_body import read_body, shape_of
from tvm_mpq.transform.pipeline import Pipeline

Array = npt.NDArray[Any]
Moments = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OutputGradient:
    """Of g = ∂loss/∂z of one operator: E Σ g and E Σ g² for each output channel [O], Σ over positions, E over samples.

    ``mean`` is the derivative of the expected loss by the operator's bias.
    """

    mean: Moments
    second: Moments


def output_gradients(
    mod: tvm.IRModule,
    loss: RelaxLoss,
    data: Dataset,
    target: Target,
    labels: Literal["data", "drawn"] = "data",
    weights: Mapping[str, QuantizedWeights] | None = None,
    seed: int = 0,
) -> dict[str, OutputGradient]:
    """:class:`OutputGradients` of one network, one set of weights and all samples of ``data``."""
    return OutputGradients(mod, loss, target, labels)(data, weights, seed)


class OutputGradients:
    """The moments for each operator of a network that has weights and that the loss depends on, in order.

    The network runs in fp32; other weights, of the same network, need no new build.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        loss: RelaxLoss,
        target: Target,
        labels: Literal["data", "drawn"] = "data",
        threads: int | None = None,
    ) -> None:
        """Of the canonical ``mod`` on ``target``, which must be able to run here.

        ``labels`` are the data's, or drawn for each sample from what the network, with the weights it is given,
        predicts. Raises MpqError for a loss whose labels cannot be drawn.
        """
        self._mod, self._target, self._drawn = mod, target, labels == "drawn"
        self._loss = drawn_loss(loss) if self._drawn else loss
        self._threads = available_threads() if threads is None else threads
        self._built: dict[int, Callable[..., Any]] = {}

    def __call__(
        self, data: Dataset, weights: Mapping[str, QuantizedWeights] | None = None, seed: int = 0
    ) -> dict[str, OutputGradient]:
        """The moments over all samples of ``data``; ``seed`` is for drawing labels.

        What integer ``weights`` stand for takes the place of those operators' own. Raises MpqError where data, loss,
        weights and network do not fit.
        """
        given = None if self._drawn or self._loss.labels is None else data.labels
        if given is None and self._loss.labels is not None and not self._drawn:
            raise MpqError(f"loss {self._loss.name!r} needs labels and the data has none")
        # Losses compare with the outputs of the network as it was, whatever its weights are now.
        reference = fp32_outputs(self._mod, data, self._target) if self._loss.needs_reference else None
        inputs, names, run = self._prepared(weights or {})
        feeds = Feeds(data, inputs[0].shape[0], given, reference)
        rng = np.random.default_rng(seed)
        totals: dict[str, Moments] = {}
        for start in range(0, len(data), feeds.size):
            batch = feeds.batch(start)
            if self._drawn:
                batch["labels"] = rng.gumbel(size=inputs[-1].shape)
            arguments = [
                tensor(np.ascontiguousarray(batch[s.name].reshape(s.shape), np.dtype(s.dtype)))
                for s in inputs
            ]
            for name, sums in zip(names, run(arguments), strict=True):
                # The last batch is filled up with samples that do not count.
                part = sums[: len(data) - start].astype(np.float64).sum(axis=0)
                totals[name] = totals[name] + part if name in totals else part
        return {
            name: OutputGradient(*(total / len(data)).reshape(2, -1))
            for name, total in reversed(totals.items())
        }

    def _prepared(
        self, weights: Mapping[str, QuantizedWeights]
    ) -> tuple[list[TensorSpec], list[str], Callable[[list[Any]], list[Array]]]:
        """Inputs, operators, and the function from the inputs to [n, 2 · channels] of each operator."""
        mod = tvm.transform.Sequential([dequantized(self._mod, weights)])(self._mod)
        wanted = [operator.name for operator in operators(mod) if operator.kind in WEIGHTED_KINDS]
        results: dict[str, relax.Var] = {}

        def collect(builder: CanonicalBuilder, operator: Differentiated) -> None:
            results[operator.name] = _moments(builder, operator)

        builder, per_sample = add_gradients(mod, self._loss, wanted, collect)
        module = builder.build({LOSS: per_sample, **results})
        plan = PrecisionPlan.uniform([operator.name for operator in operators(module)], FP32)
        pipeline, lift = Pipeline(plan, TensorRanges({}, {}), self._target.instruction), LiftConstants()
        lowered = pipeline.lower(pipeline.annotate(module), lift)
        key = tvm_ffi.structural_hash(lowered, map_free_vars=True)
        if key not in self._built:
            executable = build(lowered, self._target).executable
            self._built[key] = relax.VirtualMachine(executable, tvm.cpu())["main"]
        main = self._built[key]

        def run(arguments: list[Any]) -> list[Array]:
            outputs = run_with_threads(self._threads, lambda: main(*arguments, *lift.values))
            return [output.numpy() for output in list(outputs)[1:]] if results else []

        return io_specs(module)[0], list(results), run


def _moments(builder: CanonicalBuilder, operator: Differentiated) -> relax.Var:
    """Add Σ g and Σ g² [n, 2 · channels] of the gradient in front of the operator's activation."""
    gradient = operator.gradient
    body = read_body(operator.function)
    if (body.low, body.high) != (-math.inf, math.inf):
        y, g = relax.Var("x0", operator.result.ty), relax.Var("x1", gradient.ty)
        gated = one_call([y, g], gate(y, body.low, body.high, g))
        gradient = builder.call(f"{operator.name}:gate", "gate", gated, [operator.result, gradient])
    x = relax.Var("x0", gradient.ty)
    rank = len(shape_of(x))
    channels = rank - 1 if attr.text(operator.function, attr.KIND) == "matmul" else 1
    axes = [axis for axis in range(1, rank) if axis != channels]
    sums = op.concat([op.sum(x, axes), op.sum(op.multiply(x, x), axes)], 1)
    return builder.call(f"{operator.name}:moments", "channel_moments", one_call([x], sums), [gradient])
