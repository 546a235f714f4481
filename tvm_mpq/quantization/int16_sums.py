"""Weight codes whose sums fit int16, so that the fastest instruction of AVX2 and AVX-512 is exact.

``vpmaddubsw`` multiplies u8 activations by s8 weights and adds neighbours in int16, where it saturates: 255 · 127 +
255 · 127 does not fit. A kernel may add the results of several words of four products in int16 before it widens
them. Any activations fit when in each int16 lane the positive codes add to at most 128 and the negative ones to at
least −128 (255 · 128 = 32640 ≤ 32767): for one word of 8-bit codes, two of 7 bits, four of 6 bits.
Codes get there by a slightly larger scale for the channel and by taking what is still too much off the codes of a
lane; which of the two more is a matter of squared error. They are the same for all targets, so that all give the
same bytes. With 8 bits that costs half as much again of the rounding error, with 7 or 6 next to nothing.

ONNX Runtime's ``reduce_range`` halves every code for the same end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LIMIT = 128
"""The largest sum of the positive (or of the negated negative) codes of a lane."""
SUM_WORDS = {8: 1, 7: 2, 6: 4}
"""How many words of codes of so many bits are made to fit; fewer bits fit four as they are."""
_STEPS = 6


def lanes(weight: Array, words: int) -> Array:
    """[O, I, R, S] → [O, lanes, 2 · ``words``]: what is added in one int16, in the order of the reduction.

    A lane takes two neighbours of each word of four; each kernel row is padded with zeros to whole lanes.
    """
    o, i, r, s = weight.shape
    rows = weight.transpose(0, 2, 3, 1).reshape(o, r, s * i)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -(s * i) % (4 * words))))
    return rows.reshape(o, -1, words, 2, 2).transpose(0, 1, 3, 2, 4).reshape(o, -1, 2 * words)


def _weight(values: Array, shape: tuple[int, ...], words: int) -> Array:
    """What :func:`lanes` made, undone."""
    o, i, r, s = shape
    rows = values.reshape(o, -1, 2, words, 2).transpose(0, 1, 3, 2, 4).reshape(o, r, -1)[:, :, : s * i]
    return np.ascontiguousarray(rows.reshape(o, r, s, i).transpose(0, 3, 1, 2))


def sums_fit(codes: Array, words: int) -> bool:
    """Whether no activations can make ``words`` words of the int8 ``codes`` [O, I, R, S] leave int16."""
    return float(_largest_sums(lanes(codes.astype(np.float32), words)).max(initial=0.0)) <= LIMIT


def fitting_words(codes: Array) -> int:
    """The most words, of 4, 2 and 1, whose sums fit; 0 where not even one word's do."""
    return next((words for words in (4, 2, 1) if sums_fit(codes, words)), 0)


def fit_sums(codes: npt.NDArray[np.int8], exact: Array, words: int) -> npt.NDArray[np.int8]:
    """The int8 codes [O, I, R, S] nearest to ``exact`` (of the same shape) whose sums of ``words`` words fit.

    ``codes`` are ``exact`` rounded and clipped. The excess of a lane is taken off step by step where the squared error
    grows least.
    """
    if sums_fit(codes, words):
        return codes
    together, wanted = lanes(codes.astype(np.int16), words), lanes(exact.astype(np.float32), words)
    for sign in (1, -1):
        excess = np.maximum(together * sign, 0).sum(axis=-1) - LIMIT
        over = excess > 0
        values, goal, left = together[over] * sign, wanted[over] * sign, excess[over]
        while (at := np.flatnonzero(left > 0)).size:
            above = np.where(values[at] > 0, values[at] - goal[at], -np.inf)
            values[at, above.argmax(axis=-1)] -= 1
            left[at] -= 1
        together[over] = values * sign
    return _weight(together, codes.shape, words).astype(np.int8)


def sum_scales(weight: npt.NDArray[np.float32], scale: Array, bits: int) -> npt.NDArray[np.float32]:
    """Per-channel scales [O] from ``scale`` upwards with the least squared error of codes that were made to fit.

    ``weight`` is [O, I, R, S], ``bits`` those of its codes. The excess of a lane is counted as taken off its members
    evenly. A channel that fits keeps its scale.
    """
    together, limit = lanes(weight, SUM_WORDS[bits]), 2 ** (bits - 1) - 1
    needed = (_largest_sums(together).max(axis=1, initial=0.0) / LIMIT).astype(np.float32)
    best = scale.astype(np.float32)
    wide = np.flatnonzero(needed > best)
    if not len(wide):
        return best
    together, low, high = together[wide], best[wide], needed[wide]
    least = np.full(len(wide), np.inf)
    chosen = low.copy()
    for step in range(_STEPS + 1):
        candidate = (low * (high / low) ** np.float32(step / _STEPS)).astype(np.float32)
        exact = together / candidate[:, None, None]
        codes = np.clip(np.rint(exact), -limit, limit)
        error = np.einsum("ijk,ijk->i", codes - exact, codes - exact, dtype=np.float64)
        for side in (codes, -codes):
            excess = np.maximum(_positive_sums(side) - LIMIT, 0)
            members = np.maximum((side > 0).astype(np.float32) @ np.ones(side.shape[-1], np.float32), 1)
            error += (excess * excess / members).sum(axis=1, dtype=np.float64)
        error *= candidate.astype(np.float64) ** 2
        better = error < least
        least[better], chosen[better] = error[better], candidate[better]
    best[wide] = chosen
    return best


def _positive_sums(together: Array) -> Array:
    """[O, lanes, n] → [O, lanes], sums of the positive members; as a product, because short axes are slow to sum."""
    return np.maximum(together, 0) @ np.ones(together.shape[-1], together.dtype)


def _largest_sums(together: Array) -> Array:
    return np.maximum(_positive_sums(together), _positive_sums(-together))
