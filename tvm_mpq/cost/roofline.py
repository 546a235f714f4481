"""The least time a kernel call can take: its multiplications, or its bytes (Williams et al., CACM 52(4), 2009)."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_mpq.cost.peaks import Peaks
from tvm_mpq.runtime.metadata import KernelCall


@dataclass(frozen=True)
class Bound:
    """Seconds that a call's multiply-accumulates and its bytes take at least."""

    compute: float
    memory: float

    @property
    def seconds(self) -> float:
        """The roof: the larger of the two."""
        return max(self.compute, self.memory)


def bound(call: KernelCall, peaks: Peaks, constant_bytes: int) -> Bound:
    """The roof over ``call`` in a network with ``constant_bytes`` of weights.

    Weights come from the nearest memory that holds those of the whole network, since all of them are read before these
    are again. Inputs were just written: they and the output are where that many bytes fit.
    """
    moved = call.input_bytes + call.output_bytes
    memory = call.constant_bytes / peaks.bandwidth(constant_bytes) + moved / peaks.bandwidth(moved)
    return Bound(call.steps / peaks.macs_per_second[call.step] if call.step else 0.0, memory)
