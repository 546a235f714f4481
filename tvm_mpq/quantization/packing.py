"""Weights in the order that the kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack_weights(w: Array, groups: int, lanes: int, group: int) -> Array:
    """[O, I/groups, R, S] → [groups, blocks, steps, lanes, group] of the same dtype.

    The reduction runs over r, s, c with c fastest; each kernel row's S·C elements are padded with zeros to a multiple
    of ``group``, and O/groups to blocks·lanes.
    """
    o, i, r, s = w.shape
    per_group = o // groups
    blocks, run = -(-per_group // lanes), -(-s * i // group) * group
    padded = np.zeros((groups, blocks * lanes, r, run), w.dtype)
    padded[:, :per_group, :, : s * i] = w.transpose(0, 2, 3, 1).reshape(groups, per_group, r, s * i)
    blocked = padded.reshape(groups, blocks, lanes, r * run // group, group)
    return np.ascontiguousarray(blocked.transpose(0, 1, 3, 2, 4))


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
