"""An annotated operator as the lowering sees it."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from tvm_mpq.transform.tensors import Tensor


@dataclass(frozen=True)
class Operation:
    """One call in ``main``: the operator function, what it reads and what it makes.

    ``activations`` is the dtype it reads and computes on, ``stored`` the dtype of its result.
    """

    name: str
    kind: str
    function: relax.Function
    inputs: tuple[Tensor, ...]
    output: Tensor
    activations: str
    stored: str

    @property
    def precision(self) -> str:
        """``w8a8`` or ``fp32``, as kernels' names say it."""
        return "w8a8" if self.activations == "uint8" else "fp32"
