"""EqualizeChannels: multiply the channels of a tensor, and divide by the same in whatever reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax

from tvm_mpq.errors import MpqError
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.change_weights import ChangeWeights
from tvm_mpq.transform.operator_body import read_body, shape_of
from tvm_mpq.transform.scale_operators import output_channels, scaled

_KINDS = frozenset({"conv2d", "depthwise_conv2d", "matmul"})
_POOLS = frozenset({"max_pool2d", "avg_pool2d", "global_avg_pool"})

Factors = Mapping[str, npt.NDArray[np.float32]]


@tvm.transform.module_pass(opt_level=0, name="EqualizeChannels")
class EqualizeChannels:
    """Rewrite ``op_i: a(x·W + b)``, ``op_j: y·V`` → ``op_i: a(x·(W m) + b m)``, ``op_j: y·(V / m)``, j reading i.

    ``factors`` are m > 0, float32 [O], of operators that :func:`equalizable` names. The network is the same where
    a(m z) = m a(z): everywhere without an upper bound in the activation, and with one (ReLU6) where m z stays below it
    (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.1).
    """

    def __init__(self, factors: Factors) -> None:
        self.factors = factors

    def transform_module(self, mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass; raises MpqError for a name that cannot be equalized, and factors that do not fit."""
        readers = equalizable(mod)
        result = mod.clone()
        variables = {attr.text(f, attr.OPERATOR): v for v, f in mod.functions_items()}
        for name, factor in self.factors.items():
            if name not in readers:
                raise MpqError(f"the channels of operator {name!r} cannot be equalized")
            function = result[variables[name]]
            if factor.shape != (output_channels(function),) or not (np.isfinite(factor) & (factor > 0)).all():
                raise MpqError(f"operator {name!r} needs one positive factor a channel")
            result.update_func(variables[name], scaled(function, factor))
            divided = {reader: _divided(result[variables[reader]], factor) for reader in readers[name]}
            result = tvm.transform.Sequential([ChangeWeights(divided)])(result)
        return result


def equalize_channels(mod: IRModule, factors: Factors) -> IRModule:
    """The module after :class:`EqualizeChannels`."""
    return tvm.transform.Sequential([EqualizeChannels(factors)])(mod)


def equalizable(mod: IRModule) -> dict[str, tuple[str, ...]]:
    """Operators whose channels can be multiplied, and the operators that must divide, by name, in order.

    All that reads such an operator has weights, directly or behind pools and a flattened vector, and its own
    activation is none, or a clip from zero.
    """
    calls, results = attr.calls(mod), set(attr.results(mod))
    reading: dict[relax.Var, list[tuple[relax.Var, relax.Function]]] = {}
    for variable, function, call in calls:
        for argument in call.args:
            reading.setdefault(argument, []).append((variable, function))

    def readers(variable: relax.Var) -> list[str] | None:
        """None where something else than weights reads it."""
        if variable in results:
            return None
        found: list[str] = []
        for result, function in reading.get(variable, ()):
            kind = attr.text(function, attr.KIND)
            if kind in _KINDS:
                found.append(attr.text(function, attr.OPERATOR))
                continue
            behind = readers(result) if kind in _POOLS or _flattens(variable, kind, result) else None
            if behind is None:
                return None
            found += behind
        return found

    found = {}
    for variable, function, _ in calls:
        if attr.text(function, attr.KIND) in _KINDS and read_body(function).low in (0.0, -math.inf):
            names = readers(variable)
            if names:
                found[attr.text(function, attr.OPERATOR)] = tuple(dict.fromkeys(names))
    return found


def weights_by_input(function: relax.Function) -> npt.NDArray[np.float32]:
    """The weights of an operator by its input's channels: [groups, C/groups, K/groups, R·S]."""
    body = read_body(function)
    assert body.weight is not None
    if _is_matmul(function):
        return body.weight[None, :, :, None]
    groups = int(body.attributes.groups)
    k, c, r, s = body.weight.shape
    return body.weight.reshape(groups, k // groups, c, r * s).transpose(0, 2, 1, 3)


def _divided(function: relax.Function, factor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    body = read_body(function)
    assert body.weight is not None
    if _is_matmul(function):
        return body.weight / factor[:, None]
    groups = int(body.attributes.groups)
    k, c, r, s = body.weight.shape
    parts = body.weight.reshape(groups, k // groups, c, r, s) / factor.reshape(groups, 1, c, 1, 1)
    return parts.reshape(body.weight.shape)


def _is_matmul(function: relax.Function) -> bool:
    return attr.text(function, attr.KIND) == "matmul"


def _flattens(source: relax.Var, kind: str, result: relax.Var) -> bool:
    """Whether a reshape leaves one element a channel, in order."""
    if kind != "reshape":
        return False
    before, after = shape_of(source), shape_of(result)
    return len(before) == 4 and before[2:] == (1, 1) and after == before[:2]
