"""Where a weighted kernel wants its weights: as NumPy packs them, and as the expanding kernels write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.kernels.convolution import packed_factor_shape, packed_weight_shape
from tvm_mpq.kernels.cuda.dot_depthwise import TAPS
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.winograd import WinogradGeometry
from tvm_mpq.quantization.packing import pack_channels, pack_depthwise, pack_weights
from tvm_mpq.quantization.winograd import pack_winograd

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class WeightLayout:
    """The layout of one kernel's weights.

    ``shape`` is what the kernel declares; ``extents`` are the same as groups, blocks, kernel rows, steps, words,
    lanes, elements of a word, and ``cut`` the kernel rows and the elements of one that those count. ``pack`` puts
    weights [O, C, R, S] there, ``pack_each`` a number a channel [O]. Where the kernel multiplies groups of weights
    itself, ``multipliers`` is the shape of these: [groups, blocks, R · groups of a kernel row, lanes].
    """

    shape: tuple[int, ...]
    extents: tuple[int, ...]
    cut: tuple[int, int]
    pack: Callable[[Array], Array]
    pack_each: Callable[[Array], Array]
    nibbles: bool = False
    multipliers: tuple[int, ...] | None = None


def weight_layout(spec: KernelSpec) -> WeightLayout:
    """The layout for ``spec``'s kernel."""
    shape = spec.shape
    rows, columns = shape.kernel
    if spec.family == "depthwise" and spec.dot_taps:
        # Taps of a kernel row are the reduction, of which dp4a takes four; every channel is an output of one input.
        channels, steps = shape.out_channels, -(-columns // TAPS)
        return WeightLayout(
            (1, 1, rows * steps, 1, channels, TAPS),
            (1, 1, rows, steps, 1, channels, TAPS),
            (rows, columns),
            lambda w: pack_weights(w, 1, channels, TAPS),
            lambda values: values,
        )
    if spec.family == "depthwise":
        dims = (rows, columns, shape.out_channels)
        extents = (1, 1, rows, columns, 1, shape.out_channels, 1)
        return WeightLayout(
            dims, extents, (rows, columns), lambda w: _as_read(pack_depthwise(w), spec), lambda values: values
        )
    row = spec.row
    if spec.family == "winograd":
        tiled = WinogradGeometry(shape, row)
        blocks, _, steps = tiled.weight_shape[:3]
        return WeightLayout(
            tiled.weight_shape,
            (1, blocks, 9, steps, 1, tiled.block, row.group),
            (9, shape.in_channels),
            lambda w: _as_read(pack_winograd(w, tiled.channels, tiled.block, row.group, row.nibbles), spec),
            lambda values: pack_channels(values, shape.groups, tiled.block),
            row.nibbles,
        )
    packed = packed_weight_shape(shape, row)
    groups, blocks, steps = packed[:3]
    return WeightLayout(
        packed,
        (groups, blocks, rows, steps // rows, *packed[3:]),
        (rows, shape.run),
        lambda w: _as_read(pack_weights(w, groups, row.lanes, row.group, row.words, row.nibbles), spec),
        lambda values: pack_channels(values, groups, row.lanes),
        row.nibbles,
        packed_factor_shape(shape, row, spec.weight_group) if row.multiplied else None,
    )


def _as_read(packed: Array, spec: KernelSpec) -> Array:
    """Packed weights as the kernel ``spec`` reads them: their bits where the machine converts no half floats."""
    return packed.view(np.uint16) if packed.dtype == np.float16 and spec.float_weight != "float16" else packed
