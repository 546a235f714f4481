"""The one-dimensional transforms of Winograd's F(2, 3) and F(4, 3), on vectors of integers or floats.

Two of each, one down the rows and one along the columns, make those of a tile (:mod:`tvm_mpq.kernels.winograd`). Each
is written with the fewest additions that were found; products with small constants are shifts and additions.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr


def transform_input(d: Sequence[Expr]) -> list[Expr]:
    """Bᵀ d: four of four inputs for F(2, 3), six of six for F(4, 3).

    F(4, 3): (4d₀ − 5d₂ + d₄, t + u, t − u, v + w, v − w, 4d₁ − 5d₃ + d₅) of t = 4d₂ − d₄, u = 4d₁ − d₃, v = d₄ − d₂,
    w = 2 (d₃ − d₁).
    """
    if len(d) == 4:
        return [T.bind(d[0] - d[2]), T.bind(d[1] + d[2]), T.bind(d[2] - d[1]), T.bind(d[1] - d[3])]
    t, u = T.bind(times_power(d[2], 2) - d[4]), T.bind(times_power(d[1], 2) - d[3])
    v, w = T.bind(d[4] - d[2]), T.bind(times_power(d[3] - d[1], 1))
    first = T.bind(v + times_power(d[0] - d[2], 2))
    last = T.bind(d[5] - d[3] - times_power(w, 1))
    return [first, T.bind(t + u), T.bind(t - u), T.bind(v + w), T.bind(v - w), last]


def transform_weights(g: Sequence[Expr], outputs: int) -> list[Expr]:
    """2G g of three weights for F(2, 3), 24G g for F(4, 3): so many ``outputs``."""
    outer = T.bind(g[0] + g[2])
    if outputs == 2:
        return [T.bind(g[0] + g[0]), T.bind(outer + g[1]), T.bind(outer - g[1]), T.bind(g[2] + g[2])]
    even, odd = T.bind(g[0] + times_power(g[2], 2)), T.bind(g[1] + g[1])
    return [
        T.bind(times_power(g[0], 2) + times_power(g[0], 1)),
        T.bind(times_power(outer + g[1], 2)),
        T.bind(times_power(outer - g[1], 2)),
        T.bind(even + odd),
        T.bind(even - odd),
        T.bind(times_power(g[2], 4) + times_power(g[2], 3)),
    ]


def transform_output(m: Sequence[Expr]) -> list[Expr]:
    """Aᵀ m: two of four products for F(2, 3), four of six for F(4, 3)."""
    if len(m) == 4:
        return [T.bind(m[0] + m[1] + m[2]), T.bind(m[1] - m[2] - m[3])]
    near, far = T.bind(m[1] + m[2]), T.bind(m[3] + m[4])
    slope, steep = T.bind(m[1] - m[2]), T.bind(times_power(m[3] - m[4], 1))
    return [
        T.bind(m[0] + near + far),
        T.bind(slope + steep),
        T.bind(near + times_power(far, 2)),
        T.bind(slope + times_power(steep, 2) + m[5]),
    ]


def times_power(value: Expr, power: int) -> Expr:
    """``value`` · 2^``power`` of a vector of integers."""
    element, lanes = str(value.ty.dtype).rsplit("x", 1)
    return T.shift_left(value, T.broadcast(T.cast(power, element), int(lanes)))
