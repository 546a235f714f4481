"""Weights that a package stores in fewer than 8 bits, as its kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_mpq.runtime.tracer import tensors

EXPAND = "expand_weights"
"""The library's function that takes the stream, uint8 [bytes], and gives what ``main`` takes behind its inputs."""


def expanded_weights(machine: Any, stream: bytes, device: Any = None) -> list[Any]:
    """The tensors that ``main`` of the virtual ``machine`` takes behind the inputs, from the package's ``stream``.

    They are in the memory of ``device`` (None: this machine's own).
    """
    if not stream:
        return []
    return list(machine[EXPAND](*tensors([np.frombuffer(stream, np.uint8)], device)))
