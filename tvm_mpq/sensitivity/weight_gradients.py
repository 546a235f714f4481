"""The gradient of the loss by the weights of every operator, in front of the activation, from recorded tensors.

z = W ∗ x + b,  y = activation(z),  g = ∂loss/∂z      ∂loss/∂W = Σ_positions g xᵀ,  ∂loss/∂b = Σ_positions g
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from rich.progress import Progress
from tvm import relax

from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.quantization.patches import Window, patches
from tvm_mpq.sensitivity.backward import Differentiated, before_activation
from tvm_mpq.sensitivity.canonical_builder import CanonicalBuilder, one_call
from tvm_mpq.sensitivity.input_statistics import window
from tvm_mpq.sensitivity.losses import RelaxLoss
from tvm_mpq.sensitivity.recorded import recorded
from tvm_mpq.target import Target

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WeightGradient:
    """Of one operator: E Σ g xᵀ [2, groups, O/groups, K], of even samples and of odd ones, and E Σ g [2, O] of both.

    ``squares`` are E Σ g² and E (Σ g)² [2, O] of all samples. K is C/groups · r · s in the order of ONNX's weights.
    """

    products: Floats
    sums: Floats
    squares: Floats


def weight_gradients(
    mod: tvm.IRModule,
    loss: RelaxLoss,
    data: Dataset,
    target: Target,
    wanted: list[str],
    progress: Progress | None = None,
) -> dict[str, WeightGradient]:
    """The gradients of the operators ``wanted``, which have weights, over ``data``, in fp32.

    Operators that the loss does not depend on are left out. Raises MpqError for fewer than two samples and as
    :func:`~tvm_mpq.sensitivity.recorded.recorded` does.
    """
    if len(data) < 2:
        raise MpqError("gradients by weights need at least 2 samples")
    totals: dict[str, WeightGradient] = {}
    for index, seen in enumerate(_samples(mod, loss, data, target, wanted, progress)):
        for name, (x, g) in seen.items():
            rows = g.reshape(-1, g.shape[2])
            product = g @ x.transpose(0, 2, 1)
            if name not in totals:
                totals[name] = WeightGradient(
                    np.zeros((2, *product.shape)), np.zeros((2, len(rows))), np.zeros((2, len(rows)))
                )
            total = totals[name]
            total.products[index % 2] += product
            total.sums[index % 2] += rows.sum(axis=1)
            total.squares[0] += np.square(rows).sum(axis=1)
            total.squares[1] += np.square(rows.sum(axis=1))
    halves = np.array([(len(data) + 1) // 2, len(data) // 2])
    return {
        name: WeightGradient(
            total.products / halves[:, None, None, None],
            total.sums / halves[:, None],
            total.squares / len(data),
        )
        for name, total in totals.items()
    }


def _samples(
    mod: tvm.IRModule,
    loss: RelaxLoss,
    data: Dataset,
    target: Target,
    wanted: list[str],
    progress: Progress | None,
) -> Iterator[dict[str, tuple[Array, Array]]]:
    """For each sample and operator: inputs [groups, K, positions] and gradients [groups, O/groups, positions]."""
    windows: dict[str, Window] = {}

    def record(builder: CanonicalBuilder, operator: Differentiated) -> Mapping[str, relax.Var]:
        windows[operator.name] = window(operator.function)
        x = relax.Var("x0", operator.inputs[0].ty)
        same = one_call([x], relax.op.multiply(x, relax.const(1.0, "float32")))
        # The network's own input is no result of an operator, and cannot be an output.
        copied = builder.call(f"{operator.name}:x", "copy", same, [operator.inputs[0]])
        return {f"{operator.name}:x": copied, f"{operator.name}:g": before_activation(builder, operator)}

    task = None if progress is None else progress.add_task("gradients by weights", total=len(data))
    for arrays in recorded(mod, loss, data, target, wanted, record):
        count = len(next(iter(arrays.values())))
        for index in range(count):
            seen = {}
            for name, each in windows.items():
                x, g = (arrays[f"{name}:{part}"][index : index + 1] for part in "xg")
                pixels = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x.reshape(-1, 1, 1, x.shape[-1])
                rows = g.reshape(g.shape[1], -1) if g.ndim == 4 else g.reshape(-1, g.shape[-1]).T
                seen[name] = (patches(pixels, each), rows.reshape(each.groups, -1, rows.shape[1]))
            yield seen
        if progress is not None and task is not None:
            progress.advance(task, count)
