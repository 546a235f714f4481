"""A function of each element of one tensor, as steps: what a table of 256 codes or one fused float kernel computes.

Gelu, silu, hard-swish and their like reach ONNX in many spellings; all of them end as one expression over one
tensor, and the frontend, the 8-bit tables and the float kernels read it the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Argument = int | float
Step = tuple[str, tuple[Argument, ...]]

OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "sin": np.sin,
    "cos": np.cos,
}
"""The steps by Relax's names, in float64."""


@dataclass(frozen=True)
class Pointwise:
    """``steps`` in order: an operation and its arguments, integers for values (0 is x, i the i-th step)."""

    steps: tuple[Step, ...] = ()

    def apply(self, x: T, call: Callable[[str, list[T]], T], constant: Callable[[float], T]) -> T:
        """The last step's value, where ``call`` performs an operation and ``constant`` makes a number."""
        values = [x]
        for operation, arguments in self.steps:
            values.append(
                call(operation, [values[a] if isinstance(a, int) else constant(a) for a in arguments])
            )
        return values[-1]

    def evaluate(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """f(x) in float64; NaN and infinite where the function is."""
        with np.errstate(all="ignore"):
            return np.asarray(
                self.apply(x, lambda name, arguments: OPERATIONS[name](*arguments), np.float64), np.float64
            )

    def then(self, operation: str, *others: float, swapped: bool = False) -> Pointwise:
        """``operation`` of this function, and of numbers behind it (in front of it where ``swapped``)."""
        last = len(self.steps)
        arguments = (*others, last) if swapped else (last, *others)
        return Pointwise((*self.steps, (operation, arguments)))

    def after(self, inner: Pointwise) -> Pointwise:
        """x ↦ self(inner(x))."""
        shift = len(inner.steps)
        return Pointwise((*inner.steps, *_moved(self.steps, lambda index: index + shift)))

    def join(self, operation: str, other: Pointwise) -> Pointwise:
        """x ↦ operation(self(x), other(x))."""
        shift = len(self.steps)
        second = _moved(other.steps, lambda index: index + shift if index else 0)
        right = shift + len(other.steps) if other.steps else 0
        return Pointwise((*self.steps, *second, (operation, (shift, right))))

    def to_json(self) -> str:
        """The steps as one line."""
        return json.dumps(self.steps)

    @classmethod
    def from_json(cls, text: str) -> Pointwise:
        """Read what :meth:`to_json` wrote."""
        return cls(tuple((operation, tuple(arguments)) for operation, arguments in json.loads(text)))


def _moved(steps: tuple[Step, ...], place: Callable[[int], int]) -> list[Step]:
    return [
        (operation, tuple(place(a) if isinstance(a, int) else a for a in arguments))
        for operation, arguments in steps
    ]


X = Pointwise()
"""x itself."""
