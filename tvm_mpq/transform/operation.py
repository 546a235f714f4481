"""An annotated operator as the lowering sees it."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from tvm_mpq.precision import Precision
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.transform.tensors import Tensor


@dataclass(frozen=True)
class Operation:
    """One call in ``main``: the operator function, what it reads and what it makes.

    ``executed`` is its precision, ``stored`` the dtype of its result. ``weights`` are integer weights that somebody
    chose for it, None where they are to be rounded here. ``any_codes`` asks for a kernel of any 8-bit codes.
    """

    name: str
    kind: str
    function: relax.Function
    inputs: tuple[Tensor, ...]
    output: Tensor
    executed: Precision
    stored: str
    weights: QuantizedWeights | None = None
    any_codes: bool = False

    @property
    def activations(self) -> str:
        """The dtype it reads and computes on."""
        return "uint8" if self.executed.integer_activations else "float32"

    @property
    def precision(self) -> str:
        """``w8a8`` or ``fp32``: what kernels without weights say of themselves in their names."""
        return "w8a8" if self.activations == "uint8" else "fp32"
