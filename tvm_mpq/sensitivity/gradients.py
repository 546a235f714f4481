"""The gradients of a loss by the outputs and inputs of a network's operators, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvm_mpq.build import build
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.sensitivity.backward import LOSS, Differentiated, add_gradients
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder
from tvm_mpq.sensitivity.losses import RelaxLoss
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline

Array = npt.NDArray[Any]


class GradientFunction:
    """A network in fp32 that gives, for a batch, each sample's loss and the gradients of their sum.

    Samples do not meet in a network, so the gradient's rows are those of each sample's own loss.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        loss: RelaxLoss,
        target: Target,
        wanted: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        """Compile for the canonical ``mod`` and this machine as ``target`` describes it.

        ``wanted`` names operators, all by default. Raises MpqError as :func:`add_gradients` does.
        """
        names = [operator.name for operator in operators(mod)] if wanted is None else list(wanted)
        results: dict[str, relax.Var] = {}

        def collect(builder: CanonicalBuilder, operator: Differentiated) -> None:
            results[f"{operator.name}:output"] = operator.gradient
            for index, gradient in enumerate(operator.input_gradients):
                if gradient is not None:
                    results[f"{operator.name}:input.{index}"] = gradient

        builder, per_sample = add_gradients(mod, loss, names, collect, every_input=True)
        module = builder.build({LOSS: per_sample, **results})
        plan = PrecisionPlan.uniform([operator.name for operator in operators(module)], FP32)
        pipeline = Pipeline(plan, TensorRanges({}, {}), target.instruction)
        built = build(pipeline.lower(pipeline.annotate(module)), target)
        self.inputs, outputs = io_specs(module)
        self._names = [spec.name for spec in outputs]
        self._main = relax.VirtualMachine(built.executable, tvm.cpu())["main"]
        self._threads = available_threads() if threads is None else threads

    def __call__(self, feeds: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """(loss float32 [n], gradients) for an array for each of :attr:`inputs`.

        A gradient is called ``<operator>:output`` or ``<operator>:input.<i>`` and has the shape of that tensor. The
        gradient by an input is the part that goes through this operator. Where the loss does not depend on a tensor,
        or it holds no floats, there is none.
        """
        arguments = [
            tvm.runtime.tensor(np.ascontiguousarray(feeds[s.name], np.dtype(s.dtype))) for s in self.inputs
        ]
        outputs = run_with_threads(self._threads, lambda: self._main(*arguments))
        arrays = [outputs] if len(self._names) == 1 else list(outputs)
        loss, *gradients = [array.numpy() for array in arrays]
        return loss, dict(zip(self._names[1:], gradients, strict=True))
