"""Factors of a tensor's channels that make 8 bits fit them better: cross-layer equalisation with its noise counted.

A tensor y with one grid of step Δ for all channels, read by weights V with one step s_k for all inputs of an output k,
makes noise of variance

    J(m) = Δ²/12 Σ_o |V_o|²/m_o² + Σ_k s_k²/12 Σ_o E[y_o²] m_o²,  Δ = max_o m_o a_o / 255,  s_k = max_o |V_ko|/m_o / q

in the sums of its readers once channel o is multiplied by m_o and V_o divided by it; a_o is the channel's largest
magnitude and q the largest code (a group of a grouped convolution has its own sums). Channels that use little of the
grid gain by m > 1 until their weights become small. The candidates are a^−α v^(1−α) with v_o = max_k |V_ko| (Xiao et
al. 2023, "SmoothQuant", eq. 4; α = ½ is Nagel et al. 2019); α is the one of least J, and none where that is not below
J(1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.weights import largest_code

Floats = npt.NDArray[np.float64]

_STRENGTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_LEVELS = 255
_WIDEST = 64.0
_MARGIN = 1.25
"""Other samples go so far beyond the largest magnitudes that were seen."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Of a tensor's channels [C]: the ``largest`` magnitude and the ``mean_square``, float64."""

    largest: Floats
    mean_square: Floats


def equalizing_factors(
    statistics: ChannelStatistics, readers: list[npt.NDArray[np.float32]], bits: int, high: float
) -> npt.NDArray[np.float32] | None:
    """Factors m float32 [C] of least noise, None where none is better than 1.

    ``readers`` are the weights that read the tensor, each [groups, C/groups, K/groups, R·S]. ``bits`` is what they will
    have, ``high`` the upper bound of the activation that makes the tensor: m lifts no channel close to it, and lowers
    none that may have been cut by it.
    """
    used = statistics.largest > 0.0
    weights = np.max([np.abs(each).max(axis=(2, 3)).reshape(-1) for each in readers], axis=0)
    used &= weights > 0.0
    if used.sum() < 2:
        return None
    best, least = None, _noise(np.ones(len(used)), statistics, readers, bits)
    for strength in _STRENGTHS:
        factors = np.ones(len(used))
        factors[used] = statistics.largest[used] ** -strength * weights[used] ** (1.0 - strength)
        # The widest channel keeps its size: the grid's range stays, and with it what an activation cuts.
        factors[used] /= (factors[used] * statistics.largest[used]).max() / statistics.largest.max()
        factors = np.clip(factors, 1.0 / _WIDEST, _WIDEST)
        if np.isfinite(high):
            room = high / (_MARGIN * np.maximum(statistics.largest, 1e-30))
            factors = np.clip(factors, 1.0, np.maximum(room, 1.0))
            factors[~used] = 1.0
        noise = _noise(factors, statistics, readers, bits)
        if noise < least:
            best, least = factors, noise
    return None if best is None else best.astype(np.float32)


def _noise(
    factors: Floats, statistics: ChannelStatistics, readers: list[npt.NDArray[np.float32]], bits: int
) -> float:
    """Twelve times J."""
    step = (factors * statistics.largest).max() / _LEVELS
    squares = statistics.mean_square * factors**2
    total = 0.0
    for reader in readers:
        groups, channels, _, positions = reader.shape
        divided = reader.astype(np.float64) / factors.reshape(groups, channels, 1, 1)
        total += step**2 * float((divided**2).sum())
        steps = np.abs(divided).max(axis=(1, 3)) / largest_code(bits)
        inputs = squares.reshape(groups, channels).sum(axis=1) * positions
        total += float((steps**2).sum(axis=1) @ inputs)
    return total
