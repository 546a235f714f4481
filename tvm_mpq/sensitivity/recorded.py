"""Tensors of a network's backward pass, recorded batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.runtime import tensor

from tvm_mpq.build import build
from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.sensitivity.backward import LOSS, Differentiated, add_gradients
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder
from tvm_mpq.sensitivity.collection import Feeds
from tvm_mpq.sensitivity.fp32_outputs import fp32_outputs
from tvm_mpq.sensitivity.losses import RelaxLoss, drawn_loss, is_likelihood
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.lift_constants import LiftConstants
from tvm_mpq.transform.pipeline import Pipeline

Array = npt.NDArray[Any]
Record = Callable[[CanonicalBuilder, Differentiated], Mapping[str, relax.Var]]


def recorded(
    mod: tvm.IRModule,
    loss: RelaxLoss,
    data: Dataset,
    target: Target,
    wanted: Sequence[str],
    record: Record,
    *,
    drawn: bool = False,
    seed: int = 0,
) -> Iterator[dict[str, Array]]:
    """What ``record`` names at each operator of ``wanted``, float32 [n, …], for every batch of ``data`` in order.

    Runs the canonical ``mod`` in fp32 on ``target``, which must be able to run here. With ``drawn``, where the loss is
    the negative log likelihood of a class, labels are drawn from what the network predicts, so that squared gradients
    are the Fisher information; every other loss takes the data's. Raises MpqError where data, loss and network do not
    fit, and for an operator without a gradient.
    """
    draws = drawn and is_likelihood(loss)
    used = drawn_loss(loss) if draws else loss
    labels = None if draws or used.labels is None else data.labels
    if labels is None and used.labels is not None and not draws:
        raise MpqError(f"loss {loss.name!r} needs labels and the data has none")
    found: dict[str, relax.Var] = {}

    def visit(builder: CanonicalBuilder, operator: Differentiated) -> None:
        found.update(record(builder, operator))

    builder, per_sample = add_gradients(mod, used, wanted, visit)
    module = builder.build({LOSS: per_sample, **found})
    plan = PrecisionPlan.uniform([operator.name for operator in operators(module)], FP32)
    pipeline, lift = Pipeline(plan, TensorRanges({}, {}), target.instruction), LiftConstants()
    executable = build(pipeline.lower(pipeline.annotate(module), lift), target).executable
    main = relax.VirtualMachine(executable, tvm.cpu())["main"]
    inputs = io_specs(module)[0]
    reference = fp32_outputs(mod, data, target) if used.needs_reference else None
    feeds, rng = Feeds(data, inputs[0].shape[0], labels, reference), np.random.default_rng(seed)
    for start in range(0, len(data), feeds.size):
        batch = feeds.batch(start)
        if draws:
            batch["labels"] = rng.gumbel(size=inputs[-1].shape)
        arguments = [
            tensor(np.ascontiguousarray(batch[s.name].reshape(s.shape), np.dtype(s.dtype))) for s in inputs
        ]
        outputs = run_with_threads(available_threads(), functools.partial(main, *arguments, *lift.values))
        values = list(outputs)[1:] if found else []
        # The last batch is filled up with samples that do not count.
        count = min(feeds.size, len(data) - start)
        yield {name: value.numpy()[:count] for name, value in zip(found, values, strict=True)}
