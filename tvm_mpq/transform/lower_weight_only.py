"""What operators compute with that keep float32 activations and store smaller weights.

Integer weights: y = activation(scale · Σ_g multiplier[g] · Σ_{k in g} x[k] · code[k] + b). Floats of 16 bits are
weights like any other, once they are widened.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.weight_only import BLOCK
from tvm_mpq.quantization.packing import pack_channels, pack_codes, pack_multipliers
from tvm_mpq.quantization.rounding import check_shape, round_to_nearest
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.transform.operation import Operation

Array = npt.NDArray[Any]


def weight_only_codes(operation: Operation, weight: npt.NDArray[np.float32]) -> QuantizedWeights:
    """The operator's integer weights: those given, or ``weight`` [K, C, R, S] rounded to nearest."""
    if operation.weights is not None:
        check_shape(operation.weights, weight, f"operator {operation.name}")
        return operation.weights
    executed, title = operation.executed, f"the weights of operator {operation.name}"
    return round_to_nearest(weight, executed.weight_bits, executed.group, title)


def stays_packed(shape: ConvolutionShape, weights: QuantizedWeights) -> bool:
    """Whether the kernel that unpacks codes in registers takes these weights; others are read as int8."""
    return shape.is_plain_matrix() and weights.bits <= 4 and weights.effective_group % BLOCK == 0


def packed_constants(
    weights: QuantizedWeights, bias: npt.NDArray[np.float32], spec: KernelSpec
) -> list[Array]:
    """The constants of a kernel of family ``weight_only``."""
    geometry = spec.weight_only
    constants: list[Array] = [pack_codes(weights.codes[:, :, 0, 0], geometry.bits, geometry.columns)]
    if geometry.group:
        assert weights.multiplier is not None
        constants.append(pack_multipliers(weights.multiplier, geometry.columns))
    return constants + [pack_channels(each, 1, geometry.columns)[0] for each in (weights.scale, bias)]
