"""Weights in the order that the kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack_weights(w: Array, groups: int, lanes: int, group: int) -> Array:
    """[O, I/groups, R, S] → [groups, blocks, R·S·C/group, lanes, group] of the same dtype.

    C is I/groups rounded up to a multiple of ``group``, blocks·lanes O/groups rounded up to a multiple of ``lanes``;
    what is added is zero. The reduction runs over r, s, c with c fastest.
    """
    o, i, r, s = w.shape
    per_group = o // groups
    blocks = -(-per_group // lanes)
    channels = -(-i // group) * group
    padded = np.zeros((groups, blocks * lanes, r, s, channels), w.dtype)
    padded[:, :per_group, :, :, :i] = w.reshape(groups, per_group, i, r, s).transpose(0, 1, 3, 4, 2)
    steps = r * s * channels // group
    return np.ascontiguousarray(
        padded.reshape(groups, blocks, lanes, steps, group).transpose(0, 1, 3, 2, 4)
    )  # fmt: skip


def pack_channels(values: Array, groups: int, lanes: int) -> Array:
    """[O] → [groups, blocks, lanes], zero where lanes are added."""
    per_group = len(values) // groups
    blocks = -(-per_group // lanes)
    padded = np.zeros((groups, blocks * lanes), values.dtype)
    padded[:, :per_group] = values.reshape(groups, per_group)
    return padded.reshape(groups, blocks, lanes)


def pack_depthwise(w: Array) -> Array:
    """[O, 1, R, S] → [R, S, O]."""
    return np.ascontiguousarray(w[:, 0].transpose(1, 2, 0))
