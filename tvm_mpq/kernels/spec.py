"""What names a templated kernel: enough to define it, schedule it and find its tuning log again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from tvm.tirx import PrimFunc

from tvm_mpq.kernels.convolution import ConvolutionShape, Output, convolution
from tvm_mpq.kernels.depthwise import default_depthwise_tile, depthwise, schedule_depthwise
from tvm_mpq.kernels.intrinsic import FLOAT, Intrinsic, intrinsic, narrow_intrinsic, winograd_intrinsic
from tvm_mpq.kernels.schedule_convolution import schedule_convolution
from tvm_mpq.kernels.tiles import default_convolution_tile
from tvm_mpq.kernels.weight_only import WeightOnlyGeometry, default_weight_only_tile
from tvm_mpq.kernels.weight_only_program import weight_only
from tvm_mpq.kernels.winograd import WinogradGeometry, default_winograd_tile, winograd_fits, winograd_pays
from tvm_mpq.kernels.winograd_program import winograd

ATTRIBUTE = "mpq.kernel"


@dataclass(frozen=True)
class KernelSpec:
    """A convolution (matrix multiplications included) or a depthwise convolution on one instruction set.

    Family ``weight_only`` is a matrix multiplication of float32 by packed codes of 2 or 4 bits (``weight_bits``).
    ``weight_group``: the codes share an integer factor in groups of so many elements of the reduction (0: none).
    ``int16_words``: how many words of the int8 codes :mod:`tvm_mpq.quantization.int16_sums` allows to add in int16.
    """

    family: str
    shape: ConvolutionShape
    in_dtype: str
    out: Output
    instruction: str
    weight_bits: int = 8
    weight_group: int = 0
    int16_words: int = 0

    @property
    def precision(self) -> str:
        """``fp32``, or ``w8a8`` and the like."""
        integer = self.in_dtype == "uint8"
        if not integer and self.family != "weight_only":
            return "fp32"
        group = f"g{self.weight_group}" if self.weight_group else ""
        return f"w{self.weight_bits}{group}a{8 if integer else 32}"

    @property
    def name(self) -> str:
        """A readable identifier of family, precision and shape."""
        s = self.shape
        text = (
            f"{self.family}_{self.precision}_{s.batch}x{s.height}x{s.width}x{s.in_channels}_{s.out_channels}"
        )
        if s.kernel != (1, 1):
            text += f"_k{s.kernel[0]}x{s.kernel[1]}"
        if s.stride != (1, 1):
            text += f"_s{s.stride[0]}x{s.stride[1]}"
        return text

    @property
    def row(self) -> Intrinsic:
        """The instruction this kernel is made of."""
        if self.family == "winograd":
            row = winograd_intrinsic(self.instruction, self.in_dtype)
            assert row is not None
            return row
        weight = "int8" if self.in_dtype == "uint8" else "float32"
        row = intrinsic(self.instruction, weight, self.shape.out_channels // self.shape.groups)
        return narrow_intrinsic(row, self.weight_bits, self.weight_group, self.shape.run, self.int16_words)

    @property
    def in_place(self) -> bool:
        """Whether a convolution can read its input without staging patches of it."""
        per_group = self.shape.in_channels // self.shape.groups
        same = self.row.activation == self.in_dtype and per_group % self.row.group == 0
        return same and self.shape.is_plain_matrix()

    def faster(self) -> KernelSpec:
        """This convolution by Winograd's algorithm where that gives the same result sooner, else itself."""
        row = winograd_intrinsic(self.instruction, self.in_dtype)
        if self.family != "conv2d" or row is None or not winograd_fits(self.shape, self.in_dtype):
            return self
        if self.row.nibbles:
            return self  # its weights are whole bytes
        return (
            replace(self, family="winograd")
            if winograd_pays(WinogradGeometry(self.shape, row), self.row)
            else self
        )

    @property
    def weight_only(self) -> WeightOnlyGeometry:
        """The extents of a kernel of family ``weight_only``."""
        shape = self.shape
        return WeightOnlyGeometry(
            shape.rows,
            shape.in_channels,
            shape.out_channels,
            self.weight_bits,
            self.weight_group,
            self.instruction,
        )

    def define(self) -> PrimFunc:
        """The unscheduled kernel, marked with this spec."""
        if self.family in ("winograd", "weight_only"):
            return self.schedule().with_attr(ATTRIBUTE, self.to_json())
        if self.family == "depthwise":
            definition = depthwise(self.shape, self.in_dtype, self.out)
        else:
            definition = convolution(self.shape, self.in_dtype, self.out, self.row, 1, self.weight_group)
        return definition.with_attr(ATTRIBUTE, self.to_json())

    def schedule(self) -> PrimFunc:
        """The kernel under its template with the default tile."""
        if self.family == "winograd":
            fast = default_winograd_tile(WinogradGeometry(self.shape, self.row))
            return winograd(self.shape, self.in_dtype, self.out, self.row, fast)
        if self.family == "weight_only":
            return weight_only(self.weight_only, self.out, default_weight_only_tile(self.weight_only))
        if self.family == "depthwise":
            lanes = FLOAT[self.instruction].lanes
            tile = default_depthwise_tile(self.shape, lanes, self.in_dtype)
            return schedule_depthwise(depthwise(self.shape, self.in_dtype, self.out), self.shape, tile)
        matrix = default_convolution_tile(self.shape, self.row, self.in_place)
        definition = convolution(
            self.shape, self.in_dtype, self.out, self.row, matrix.rows, self.weight_group
        )
        return schedule_convolution(definition, self.shape, self.row, matrix)

    def to_json(self) -> str:
        """The spec as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> KernelSpec:
        """Read what :meth:`to_json` wrote."""
        raw = json.loads(text)
        shape: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw["shape"].items()}
        out = Output(raw["out"]["dtype"], raw["out"].get("low", -math.inf), raw["out"].get("high", math.inf))
        return cls(**{**raw, "shape": ConvolutionShape(**shape), "out": out})
