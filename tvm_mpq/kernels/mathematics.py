"""Transcendental functions that vectorize on any target: polynomials, no calls of the C library.

Constants are those of Cephes' ``expf`` (Moshier, 1992) and of Eigen's ``ptanh_float`` and ``erf`` (rational minimax
fits). Errors are below 3e-7 of the result for exp, and below 5e-7 absolute for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.tirx import Expr

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def _float(value: float) -> Expr:
    return tirx.const(value, "float32")


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    result = _float(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _float(coefficient)
    return result


def exp(x: Expr) -> Expr:
    """e^x: 2^n · e^r with |r| ≤ ln 2 / 2; 0 below −87.3, and e^88.37 above it."""
    bounded = te.max(te.min(x, _float(88.3762626647949)), _float(-87.3365447504))
    n = tirx.floor(bounded * _float(1.44269504088896341) + _float(0.5))
    r = bounded - n * _float(0.693359375) - n * _float(-2.12194440e-4)
    fraction = _polynomial(r, _EXP) * (r * r) + r + _float(1.0)
    power = tirx.reinterpret("float32", (n.astype("int32") + 127) << 23)
    return fraction * power


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^−x)."""
    return _float(1.0) / (_float(1.0) + exp(_float(0.0) - x))


def tanh(x: Expr) -> Expr:
    """A rational function of degree 13 over 6 on [−7.9, 7.9], constant outside."""
    limit = 7.90531110763549805
    bounded = te.max(te.min(x, _float(limit)), _float(-limit))
    square = bounded * bounded
    return bounded * _polynomial(square, _TANH_P) / _polynomial(square, _TANH_Q)


def erf(x: Expr) -> Expr:
    """A rational function of degree 13 over 8 on [−4, 4], constant outside."""
    bounded = te.max(te.min(x, _float(4.0)), _float(-4.0))
    square = bounded * bounded
    return bounded * _polynomial(square, _ERF_P) / _polynomial(square, _ERF_Q)


_OPERATIONS: dict[str, Callable[..., Expr]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": te.max,
    "minimum": te.min,
    "power": tirx.pow,
    "abs": tirx.abs,
    "exp": exp,
    "log": tirx.log,
    "sqrt": tirx.sqrt,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
    "floor": tirx.floor,
    "ceil": tirx.ceil,
    "round": tirx.nearbyint,
    "sin": tirx.sin,
    "cos": tirx.cos,
}


def evaluate(operation: str, arguments: Sequence[Expr]) -> Expr:
    """One step of a :class:`tvm_mpq.pointwise.Pointwise` in float32."""
    return _OPERATIONS[operation](*arguments)
