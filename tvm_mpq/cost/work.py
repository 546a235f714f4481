"""The least work a templated kernel can be done with, in multiply-accumulates of its instruction.

docs/performance.md derives the depthwise figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm_mpq.gpu import CUDA
from tvm_mpq.kernels import neon
from tvm_mpq.kernels.cuda.work import cuda_work
from tvm_mpq.kernels.intrinsic import FLOAT, INTEGER, NEON, Intrinsic
from tvm_mpq.kernels.pair_depthwise_tile import mean_pairs
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.weight_only import BLOCK, DIGITS, default_weight_only_tile
from tvm_mpq.kernels.winograd import winograd_geometries

_WIDENING = {
    **INTEGER,
    "amx": INTEGER["avx512"],
    "avx512bf16": INTEGER["avx512"],
    "avx512vnni": INTEGER["avx512"],
    "avxvnni": INTEGER["avx2"],
}
"""The step of products that do not share an accumulator lane: no instruction for four bytes applies."""


_DOTS = {"sdot": "sdot128", "smull": "smull128x2", "plain": "mullo128"}
"""The steps that ARM's and portable code for packed weights are made of."""


@dataclass(frozen=True)
class Work:
    """``macs`` of the operator, and ``steps``: the multiply-accumulates of the step ``name`` needed at least."""

    name: str
    macs: int
    steps: float


def kernel_work(spec: KernelSpec) -> Work:
    """The work of one call of the kernel ``spec``."""
    shape = spec.shape
    macs = shape.macs
    if spec.instruction in CUDA:
        step, steps = cuda_work(spec)
        return Work(step, macs, steps)
    if spec.family == "depthwise":
        if spec.in_dtype == "float32":
            return Work(step_name(FLOAT[spec.instruction]), macs, macs)
        if spec.instruction in NEON:
            return Work("smlal128", macs, macs)  # the multiplication adds
        if spec.pair_lanes is not None:
            return _pair_depthwise_work(spec, spec.pair_lanes)
        row = _WIDENING[spec.instruction]
        # A multiplication, an addition and a part of a widening load make as many results as the row has lanes,
        # where the row's own two instructions make ``group`` times as many products.
        widening = min(1.0, shape.stride[1] / shape.kernel[1])
        return Work(step_name(row), macs, macs * row.group * (2.0 + widening) / 2.0)
    if spec.family == "weight_only":
        if default_weight_only_tile(spec.weight_only).panel:
            return Work(step_name(FLOAT[spec.instruction]), macs, macs)
        # Three digits of an activation each meet the weight; a block of 32 is eight words of four.
        dot = spec.weight_only.dot
        if dot.family in _DOTS:
            return Work(_DOTS[dot.family], macs, float(DIGITS * macs))
        words = f"x{BLOCK // 4}" if dot.family == "pmaddubsw" else ""
        return Work(f"{dot.family}{32 * dot.lanes}{words}", macs, float(DIGITS * macs))
    if spec.family == "winograd":
        # Of the tiles that can be chosen, which are no part of the spec, the one that multiplies least.
        across = winograd_geometries(shape, spec.row)[-1].across
        return Work(step_name(spec.row), macs, macs * 4.0 * (across + 2) / (18.0 * across))
    if spec.row.family in ("vdpbf16ps", neon.HALF):
        # Twice the products of a fused multiply-add of floats.
        return Work(step_name(FLOAT[spec.instruction]), macs, macs / 2)
    return Work(step_name(spec.row), macs, macs)


def _pair_depthwise_work(spec: KernelSpec, lanes: int) -> Work:
    """A multiplication and an addition for each pair of rows and column of the window, and the input's staging.

    That is one instruction for a vector of inputs: two are widened, two make pairs of two vectors of two rows.
    """
    shape = spec.shape
    row = INTEGER[{8: "avx2", 16: "avx512"}[lanes]]
    staged = min(shape.stride[0], shape.kernel[0]) * min(shape.stride[1], shape.kernel[1])
    instructions = 2 * mean_pairs(shape) * shape.kernel[1] + staged
    results = shape.rows * shape.out_channels
    return Work(step_name(row), shape.macs, results * row.group * instructions / 2)


def step_name(row: Intrinsic) -> str:
    """The row's multiply-accumulate step as :mod:`tvm_mpq.cost.peaks` knows it."""
    if row.accumulator == "float32" and row.name == "fmla128":
        return "fma128"
    if row.family is not None and row.family.startswith(("smull", "vmull")):
        return f"{row.family[:5]}128x{row.family[5:]}"
    if row.family is None and row.accumulator == "int32":
        return f"mullo{32 * row.lanes}"
    return f"{row.name}x{row.words}" if row.family == "pmaddubsw" else row.name
