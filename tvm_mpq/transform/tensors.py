"""The forms a tensor takes in the lowered network, and the kernels between them.

A tensor of ONNX shape [N, C, H, W] is held as *pixels* [N·H·W, C] (NHWC), any other in its own shape (*plain*); both in
float32 or uint8. Conversions are made where an operator asks for them, once for each tensor and form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.ir import GlobalVar
from tvm.tirx import PrimFunc

from tvm_mpq.kernels import elementwise
from tvm_mpq.kernels.expand import ExpandForm, expand
from tvm_mpq.kernels.quantize_planes import MOST_CHANNELS, quantize_planes
from tvm_mpq.kernels.spec import TileLookup, default_tiles
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.storage import Expansion

Layout = Literal["plain", "pixels"]
Form = tuple[str, Layout]


@dataclass
class Tensor:
    """One tensor of the network: its ONNX ``shape``, its grid where it has one, and the forms made so far.

    ``name`` is that of the operator or network input that makes it.
    """

    shape: tuple[int, ...]
    grid: Grid | None
    forms: dict[Form, relax.Var] = field(default_factory=dict)
    name: str = ""

    @property
    def pixel_shape(self) -> tuple[int, int]:
        """[N·H·W, C] of a tensor of rank 4."""
        n, c, h, w = self.shape
        return n * h * w, c

    def form_shape(self, layout: Layout) -> tuple[int, ...]:
        """The shape in ``layout``."""
        return self.pixel_shape if layout == "pixels" else self.shape

    @property
    def native(self) -> Layout:
        """The layout that operators without an opinion use."""
        return "pixels" if len(self.shape) == 4 else "plain"

    def same_order(self) -> bool:
        """Whether plain and pixels hold their elements in the same order."""
        return len(self.shape) != 4 or self.shape[1] == 1 or self.shape[2] * self.shape[3] == 1


class Emitter:
    """Emits kernels into ``main``: adds each function once, binds constants, converts tensors between forms.

    ``owners`` tells whose each variable is: role, operator and, of a conversion, the operator that asked for it, which
    is ``reader`` at the time ("" for the network's output).

    ``tiles`` knows the tuned tiles, which choose between algorithms and so between layouts of the weights. ``opaque``
    are the TIR functions that operators' bodies call, by their names in the module that is lowered. ``gpu``: kernels
    that are written out as programs are those for a GPU.
    """

    def __init__(
        self, builder: relax.BlockBuilder, tiles: TileLookup = default_tiles, gpu: bool = False
    ) -> None:
        self.builder = builder
        self.tiles = tiles
        self.gpu = gpu
        self.reader = ""
        self.owners: dict[str, tuple[str, str, str]] = {}
        self.opaque: dict[GlobalVar, GlobalVar] = {}

    def kernel(
        self,
        function: PrimFunc,
        name: str,
        arguments: Sequence[relax.Expr | npt.NDArray[Any]],
        shape: Sequence[int],
        dtype: str,
        result: str,
    ) -> relax.Var:
        """Call ``function`` with ``arguments`` (arrays become constants); ``result`` hints at the variable's name."""
        variable = self.builder.add_func(function, name)
        expressions = [a if isinstance(a, relax.Expr) else relax.const(a) for a in arguments]
        call = relax.call_tir(variable, expressions, relax.TensorType(list(shape), dtype))
        return self.builder.emit(call, result)

    def expand(
        self,
        stream: relax.Expr,
        expansion: Expansion,
        form: ExpandForm,
        extents: Sequence[int],
        shape: Sequence[int],
        result: str,
    ) -> relax.Var:
        """Weights of ``shape`` from a constant stream of bits, by the expanding kernel of this ``form``.

        ``extents`` are those of the kernel's result; see :func:`tvm_mpq.kernels.expand.expand`.
        """
        dtype = "uint8" if form == "nibbles" else "int8"
        name = f"expand_{form}"
        kernel = expand(form, extents if self.gpu else None)
        weights = self.kernel(kernel, name, [stream, expansion.array()], extents, dtype, result)
        return self.builder.emit(relax.op.reshape(weights, shape), result)

    def read(self, tensor: Tensor, dtype: str, layout: Layout) -> relax.Var:
        """``tensor`` in the form asked for, converted if it is not there yet."""
        form = (dtype, layout)
        if form not in tensor.forms:
            held_dtype, _ = self._nearest(tensor, dtype, layout)
            made = self._convert(tensor, dtype, layout)
            role = "layout" if held_dtype == dtype else ("quantize" if dtype == "uint8" else "dequantize")
            self.owners.setdefault(made.name, (role, tensor.name, self.reader))
            tensor.forms[form] = made
        return tensor.forms[form]

    def _convert(self, tensor: Tensor, dtype: str, layout: Layout) -> relax.Var:
        held_dtype, held_layout = self._nearest(tensor, dtype, layout)
        held = tensor.forms[held_dtype, held_layout]
        shape = tensor.form_shape(layout)
        if held_dtype == dtype:
            if tensor.same_order():
                return self.builder.emit(relax.op.reshape(held, shape), f"{held.name}_{layout}")
            make = elementwise.to_pixels if layout == "pixels" else elementwise.from_pixels
            function = make(tensor.shape, dtype)
            return self.kernel(function, make.__name__, [held], shape, dtype, f"{held.name}_{layout}")
        if dtype == "uint8" and layout == "pixels" and held_layout == "plain" and not tensor.same_order():
            few = tensor.shape[1] <= MOST_CHANNELS and not self.gpu
            function = (quantize_planes if few else elementwise.quantize_to_pixels)(tensor.shape)
            arguments = [held, *quantize_arguments(tensor)]
            return self.kernel(function, "quantize_to_pixels", arguments, shape, dtype, f"{held.name}_q")
        if held_layout != layout:
            self.read(tensor, held_dtype, layout)
            return self._convert(tensor, dtype, layout)
        if dtype == "uint8":
            function = elementwise.quantize_tensor(shape)
            arguments = [held, *quantize_arguments(tensor)]
            return self.kernel(function, "quantize", arguments, shape, dtype, f"{held.name}_q")
        grid = _grid(tensor)
        arguments = [held, np.array([grid.scale], np.float32), np.array([grid.zero_point, 0], np.int32)]
        return self.kernel(
            elementwise.dequantize_tensor(shape), "dequantize", arguments, shape, dtype, f"{held.name}_f"
        )

    @staticmethod
    def _nearest(tensor: Tensor, dtype: str, layout: Layout) -> Form:
        """The form that costs least to convert: same dtype first, then same layout."""
        return min(tensor.forms, key=lambda form: ((form[0] != dtype) * 2, form[1] != layout))


def quantize_arguments(tensor: Tensor) -> list[npt.NDArray[Any]]:
    """Inverse scale and grid as ``quantize`` kernels take them."""
    grid = _grid(tensor)
    return [np.array([grid.inverse_scale], np.float32), np.array([0, grid.zero_point], np.int32)]


def _grid(tensor: Tensor) -> Grid:
    if tensor.grid is None:
        raise AssertionError("a tensor without a grid was asked for in 8 bits")
    return tensor.grid
