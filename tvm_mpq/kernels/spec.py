"""What names a templated kernel: enough to define it, schedule it and find its tuning log again."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from tvm.tirx import PrimFunc

from tvm_mpq.gpu import CUDA
from tvm_mpq.kernels.amx import AmxGeometry, AmxTile, amx_fits, amx_pays, amx_tiles, default_amx_tile
from tvm_mpq.kernels.amx_program import amx
from tvm_mpq.kernels.convolution import ConvolutionShape, Output, convolution, rows_in_place
from tvm_mpq.kernels.cuda.default_tile import int4_pays
from tvm_mpq.kernels.cuda.kernel import cuda_int4, cuda_kernel, cuda_tile, cuda_unit
from tvm_mpq.kernels.cuda.space import cuda_space
from tvm_mpq.kernels.cuda.tile import CudaTile
from tvm_mpq.kernels.depthwise import DepthwiseTile
from tvm_mpq.kernels.depthwise_programs import DepthwiseKernel
from tvm_mpq.kernels.intrinsic import (
    HALF_CODES,
    NEON,
    Intrinsic,
    float_intrinsic,
    half_intrinsic,
    int4_intrinsic,
    intrinsic,
    narrow_intrinsic,
    winograd_intrinsic,
)
from tvm_mpq.kernels.packed_rows import (
    INPUT_OFFSET,
    LEAST_CHANNELS,
    MOST_ROWS,
    PackedRowsGeometry,
    PackedRowsTile,
    default_packed_rows_tile,
    packed_rows_tiles,
)
from tvm_mpq.kernels.packed_rows_program import packed_rows
from tvm_mpq.kernels.pair_depthwise_tile import PairDepthwiseTile
from tvm_mpq.kernels.schedule_convolution import schedule_convolution
from tvm_mpq.kernels.tiles import ConvolutionTile, convolution_tiles, default_convolution_tile
from tvm_mpq.kernels.weight_only import (
    WeightOnlyGeometry,
    WeightOnlyTile,
    default_weight_only_tile,
    weight_only_tiles,
)
from tvm_mpq.kernels.weight_only_panel import weight_only_panel
from tvm_mpq.kernels.weight_only_program import weight_only
from tvm_mpq.kernels.winograd import (
    WinogradTile,
    default_winograd_tile,
    winograd_fits,
    winograd_geometry,
    winograd_pays,
    winograd_tiles,
)
from tvm_mpq.kernels.winograd_program import winograd

ATTRIBUTE = "mpq.kernel"
_BY_INT4 = {"conv2d": "conv2d_int4", "matmul": "matmul_int4"}
_BY_AMX = {"conv2d": "conv2d_amx", "matmul": "matmul_amx"}
_BASE = {
    "winograd": "conv2d",
    "packed_rows": "matmul",
    **{other: base for base, other in _BY_AMX.items()},
    **{other: base for base, other in _BY_INT4.items()},
}
"""The families that are other algorithms for the same kernels."""
_KEPT = 256
"""Functions that are not made again: a search and an analysis lower the same kernels over and over."""

Tile: TypeAlias = (
    AmxTile
    | ConvolutionTile
    | CudaTile
    | DepthwiseTile
    | PackedRowsTile
    | PairDepthwiseTile
    | WeightOnlyTile
    | WinogradTile
)
"""The decisions of one template; its type says which."""


@dataclass(frozen=True)
class KernelSpec:
    """A convolution (matrix multiplications included) or a depthwise convolution on one instruction set.

    Family ``packed_rows`` is a matrix multiplication of few 8-bit rows by codes of up to 4 bits, ``weight_only`` one of
    float32 by packed codes of 2 or 4 bits (``weight_bits``); ``conv2d_int4`` and ``matmul_int4`` multiply codes of up
    to 4 bits on a GPU's int4 tensor cores.
    ``weight_dtype``: what weights of a kernel on float32 are stored in ("float32", "float16", "bfloat16" or "int8").
    ``weight_group``: the codes share an integer factor in groups of so many elements of the reduction (0: none).
    ``adds``: the kernel adds another tensor to its 8-bit result (see ``convolution``).
    ``halves``: float32 activations are rounded to half floats where they meet codes (``weight_dtype`` "int8").
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
    weight_dtype: str = "float32"
    adds: bool = False
    halves: bool = False

    @property
    def precision(self) -> str:
        """``fp32``, or ``w8a8`` and the like."""
        integer = self.in_dtype == "uint8"
        if not integer and self.family != "weight_only" and self.weight_dtype != "int8":
            return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[self.weight_dtype]
        group = f"g{self.weight_group}" if self.weight_group else ""
        return f"w{self.weight_bits}{group}a{8 if integer else 16 if self.halves else 32}"

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
        return text + "_add" if self.adds else text

    @property
    def row(self) -> Intrinsic:
        """The instruction this kernel is made of."""
        if self.family == "winograd":
            row = winograd_intrinsic(self.instruction, self.in_dtype)
            assert row is not None
            if self.in_dtype != "uint8":
                return replace(row, weight=self.float_weight)
            # Factors of groups are in the codes, which are whole bytes then.
            return replace(row, nibbles=self.weight_bits <= 4 and not self.weight_group)
        if self.family == "packed_rows":
            return self.packed_rows.row
        if self.family in _BY_AMX.values():
            return self.amx_geometry.row
        if self.halves:
            row = HALF_CODES[self.instruction]
            return narrow_intrinsic(row, self.weight_bits, self.weight_group, self.shape.run, 0)
        weight = "int8" if self.in_dtype == "uint8" else "float32"
        channels = self.shape.out_channels // self.shape.groups
        row = intrinsic(self.instruction, weight, channels, self.shape.rows)
        if self.in_dtype != "uint8":
            widening = float_intrinsic(row, self.float_weight, self.shape.run)
            half = half_intrinsic(self.instruction, self.weight_dtype, channels, self.shape.run)
            return half if half is not None and self.family != "depthwise" else widening
        row = narrow_intrinsic(row, self.weight_bits, self.weight_group, self.shape.run, self.int16_words)
        return int4_intrinsic(row) if self.family in _BY_INT4.values() else row

    @property
    def float_weight(self) -> str:
        """How a kernel on float32 reads its weights (see ``narrow_weights``)."""
        converts = self.instruction not in ("generic", "neon32", "portable")
        return "float16_bits" if self.weight_dtype == "float16" and not converts else self.weight_dtype

    def adding(self) -> KernelSpec:
        """The same kernel with a tensor added to its result, or itself where its template cannot."""
        whole = self.shape.groups == 1 and self.shape.out_channels % self.row.lanes == 0
        able = (
            self.family in ("conv2d", "conv2d_amx", "conv2d_int4")
            and self.in_dtype == self.out.dtype == "uint8"
        )
        return replace(self, adds=True) if whole and able else self

    @property
    def rows_in_place(self) -> int:
        """What a tile's rows must divide for a convolution to read its patches without staging them; 0 = it cannot."""
        return rows_in_place(self.shape, self.in_dtype, self.row)

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

    @property
    def packed_rows(self) -> PackedRowsGeometry:
        """The extents of a kernel of family ``packed_rows``."""
        shape = self.shape
        return PackedRowsGeometry(
            shape.rows, shape.in_channels, shape.out_channels, self.weight_group, self.instruction
        )

    @property
    def amx_geometry(self) -> AmxGeometry:
        """The extents of a kernel on AMX's tiles."""
        return AmxGeometry(self.shape, self.weight_bits <= 4 and not self.weight_group)

    @property
    def input_offset(self) -> int:
        """What the kernel subtracts from its 8-bit activations: its bias is for a zero-point less by so much."""
        return INPUT_OFFSET if self.family == "packed_rows" else 0

    @property
    def dot_taps(self) -> bool:
        """Whether a depthwise kernel multiplies words of taps, of which each 8-bit activation is less ``OFFSET``."""
        return self.instruction in CUDA and cuda_unit(self) == "dp4a"

    @property
    def base(self) -> KernelSpec:
        """What is computed, whatever algorithm computes it."""
        return replace(self, family=_BASE.get(self.family, self.family))

    @property
    def key(self) -> KernelSpec:
        """The base spec without what changes no tile (a float activation, a sum): what tuning logs are keyed by."""
        return replace(self.base, out=Output(self.out.dtype), adds=False)

    def by_winograd(self) -> KernelSpec | None:
        """This convolution by Winograd's algorithm, or None where that cannot give the same result."""
        row = winograd_intrinsic(self.instruction, self.in_dtype)
        if self.family != "conv2d" or row is None or not winograd_fits(self.shape, self.in_dtype):
            return None
        if self.row.multiplied or self.row.family == "vdpbf16ps":
            return None  # it applies no factors of groups, and floats of 32 bits are multiplied
        return replace(self, family="winograd")

    def by_packed_rows(self) -> KernelSpec | None:
        """This matrix multiplication by the kernel for few rows, or None where it has more or its codes more bits."""
        shape = self.shape
        if self.family != "matmul" or self.in_dtype != "uint8" or not self.row.nibbles:
            return None
        if self.row.activation != "uint8" or self.instruction in NEON:
            return None
        if shape.rows > MOST_ROWS or shape.in_channels < LEAST_CHANNELS or self.weight_group % 32:
            return None
        return replace(self, family="packed_rows")

    def by_amx(self) -> KernelSpec | None:
        """This kernel on AMX's tiles, or None where there are none or it does not fit them.

        It applies no factors of groups.
        """
        able = self.instruction == "amx" and self.in_dtype == "uint8" and self.family in _BY_AMX
        if not able or self.row.multiplied or not amx_fits(self.amx_geometry):
            return None
        return replace(self, family=_BY_AMX[self.family])

    def by_int4(self) -> KernelSpec | None:
        """This kernel on int4 tensor cores, or None where there are none, codes have more bits, or rows are few."""
        if self.family not in _BY_INT4 or not cuda_int4(self):
            return None
        return replace(self, family=_BY_INT4[self.family])

    def faster(self) -> KernelSpec:
        """This kernel by the algorithm that gives the same result sooner, which may be its own."""
        packed = self.by_packed_rows()
        if packed is not None:
            return packed
        by_amx = self.by_amx()
        if by_amx is not None and amx_pays(self.shape):
            return by_amx
        by_int4 = self.by_int4()
        if by_int4 is not None and int4_pays(by_int4):
            return by_int4
        other = self.by_winograd()
        if other is None or not winograd_pays(winograd_geometry(self.shape, other.row), self.row):
            return self
        return other

    def with_tile(self, tile: Tile | None) -> KernelSpec:
        """The base spec by the algorithm that ``tile`` is of, for None by the one modelled as faster."""
        if tile is None:
            return self.base.faster()
        if isinstance(tile, PackedRowsTile):
            return replace(self.base, family="packed_rows")
        if isinstance(tile, AmxTile):
            return replace(self.base, family=_BY_AMX[self.base.family])
        if isinstance(tile, CudaTile) and tile.int4:
            return replace(self.base, family=_BY_INT4[self.base.family])
        return replace(self.base, family="winograd") if isinstance(tile, WinogradTile) else self.base

    def default_tile(self) -> Tile:
        """The tile that is used where none was tuned, of this spec's own algorithm."""
        if self.instruction in CUDA:
            return cuda_tile(self)
        if self.family == "winograd":
            return default_winograd_tile(winograd_geometry(self.shape, self.row))
        if self.family == "packed_rows":
            return default_packed_rows_tile(self.packed_rows)
        if self.family in _BY_AMX.values():
            return default_amx_tile(self.amx_geometry)
        if self.family == "weight_only":
            return default_weight_only_tile(self.weight_only)
        if self.family == "depthwise":
            return self.depthwise.default_tile()
        return default_convolution_tile(self.shape, self.row, self.rows_in_place)

    @property
    def depthwise(self) -> DepthwiseKernel:
        """The programs of a kernel of family ``depthwise``."""
        return DepthwiseKernel(self.shape, self.in_dtype, self.out, self.instruction, self.float_weight)

    @property
    def pair_lanes(self) -> int | None:
        """The results of a vector of a depthwise convolution by x86's products of pairs; None for any other kernel."""
        return self.depthwise.pair_lanes if self.family == "depthwise" else None

    def space(self) -> list[Tile]:
        """Every tile worth trying that the templates can make, of each algorithm; the default first.

        Two threads share the tasks of each about evenly, so that a tile tuned on one thread serves more.
        """
        base = self.base
        if base.instruction in CUDA:
            return [*cuda_space(base)]
        default = base.faster().default_tile()
        tiles: list[Tile] = [default]
        if base.family == "depthwise":
            tiles += base.depthwise.tiles()
        elif base.family == "weight_only":
            tiles += weight_only_tiles(base.weight_only)
        else:
            tiles += convolution_tiles(base.shape, base.row, base.rows_in_place)
            other = base.by_winograd()
            if other is not None:
                tiles += winograd_tiles(other.shape, other.row)
            by_amx = base.by_amx()
            if by_amx is not None:
                tiles += amx_tiles(base.amx_geometry)
            packed = base.by_packed_rows()
            if packed is not None:
                tiles += packed_rows_tiles(packed.packed_rows)
        return list(dict.fromkeys(tiles))

    @functools.lru_cache(_KEPT)  # noqa: B019 (specs are small)
    def define(self) -> PrimFunc:
        """The unscheduled kernel, marked with this spec; one that is written out as a program is scheduled by that."""
        programs = ("packed_rows", "winograd", "weight_only", *_BY_AMX.values())
        if self.instruction in CUDA or self.family in programs:
            return self.schedule().with_attr(ATTRIBUTE, self.to_json())
        if self.family == "depthwise":
            definition = self.depthwise.define()
        else:
            definition = convolution(
                self.shape, self.in_dtype, self.out, self.row, 1, self.weight_group, self.adds
            )
        return definition.with_attr(ATTRIBUTE, self.to_json())

    @functools.lru_cache(_KEPT)  # noqa: B019
    def schedule(self, tile: Tile | None = None) -> PrimFunc:
        """The kernel under its template with ``tile``, the default for None. ``tile`` is of this spec's algorithm."""
        if self.instruction in CUDA:
            assert tile is None or isinstance(tile, CudaTile)
            return cuda_kernel(self, tile)
        tile = tile or self.default_tile()
        if isinstance(tile, WinogradTile):
            return winograd(self.shape, self.in_dtype, self.out, self.row, tile)
        if isinstance(tile, PackedRowsTile):
            return packed_rows(self.packed_rows, self.out, tile)
        if isinstance(tile, AmxTile):
            return amx(self.amx_geometry, self.out, tile, self.adds)
        if isinstance(tile, WeightOnlyTile):
            program = weight_only_panel if tile.panel else weight_only
            return program(self.weight_only, self.out, tile)
        if isinstance(tile, (DepthwiseTile, PairDepthwiseTile)):
            return self.depthwise.schedule(tile)
        assert isinstance(tile, ConvolutionTile)
        definition = convolution(
            self.shape,
            self.in_dtype,
            self.out,
            self.row,
            tile.rows,
            self.weight_group,
            self.adds,
            by_kernel_row=not tile.staged,
        )
        return schedule_convolution(definition, self.shape, self.row, tile)

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


TileLookup: TypeAlias = Callable[[KernelSpec], Tile | None]
"""The tile that was tuned for a spec's key, or None."""


def default_tiles(_spec: KernelSpec) -> Tile | None:
    """The lookup that knows no tuned tile."""
    return None
