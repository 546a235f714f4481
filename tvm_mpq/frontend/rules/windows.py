"""Padding of sliding windows made explicit, and sizes of what they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm_mpq.frontend.graph import Node


@dataclass(frozen=True)
class Window:
    """Kernel, strides, dilations [spatial axes] and pads [2 · spatial axes, all begins before all ends]."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """How many input elements one window spans along each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window_of(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a Conv or pool node over an input of spatial ``sizes``, with ``auto_pad`` resolved."""
    rank = len(sizes)
    strides = tuple(node.get("strides") or [1] * rank)
    dilations = tuple(node.get("dilations") or [1] * rank)
    window = Window(tuple(kernel), strides, dilations, tuple(node.get("pads") or [0] * (2 * rank)))
    auto_pad = node.get("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        return Window(window.kernel, strides, dilations, (0,) * (2 * rank))
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
            for size, stride, extent in zip(sizes, strides, window.extent, strict=True)
        ]
        small = [total // 2 for total in totals]
        large = [total - half for total, half in zip(totals, small, strict=True)]
        begins, ends = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        return Window(window.kernel, strides, dilations, (*begins, *ends))
    return window


def exact_pads(window: Window, sizes: Sequence[int], results: Sequence[int]) -> tuple[int, ...]:
    """Pads with which rounding down gives ``results`` where ``ceil_mode`` was needed before."""
    rank = len(sizes)
    ends = list(window.pads[rank:])
    for axis, (size, result) in enumerate(zip(sizes, results, strict=True)):
        reach = (result - 1) * window.strides[axis] + window.extent[axis] - size - window.pads[axis]
        ends[axis] = max(ends[axis], reach)
    return (*window.pads[:rank], *ends)
