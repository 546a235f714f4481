"""Rounded weights and biases as the arrays of an .npz, which holds no pickles."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.weights import QuantizedWeights

Arrays = dict[str, Any]
Biases = Mapping[str, npt.NDArray[np.float32]]

UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    OSError,
    MemoryError,
    # An archive that claims to be encrypted, or of a later version of the format.
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
"""What reading a file that is damaged, or something else, raises."""

_HEAD = "head"


def pack_weights(
    weights: Mapping[str, QuantizedWeights], biases: Biases
) -> tuple[Arrays, dict[str, dict[str, Any]]]:
    """Arrays, and for each name what of them is its: JSON-ready."""
    arrays: Arrays = {}
    entries: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(sorted({*weights, *biases})):
        entry: dict[str, Any] = {"key": str(index)}
        if name in weights:
            quantized = weights[name]
            entry |= {"bits": quantized.bits, "group": quantized.group}
            arrays[f"{index}.codes"], arrays[f"{index}.scale"] = quantized.codes, quantized.scale
            if quantized.multiplier is not None:
                arrays[f"{index}.multiplier"] = quantized.multiplier
        if name in biases:
            arrays[f"{index}.bias"] = np.asarray(biases[name], np.float32)
        entries[name] = entry
    return arrays, entries


def unpack_weights(
    arrays: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, QuantizedWeights], dict[str, npt.NDArray[np.float32]]]:
    """What :func:`pack_weights` was given; raises one of :data:`UNREADABLE` for anything else."""
    weights, biases = {}, {}
    for name, entry in entries.items():
        key = entry["key"]
        if "bits" in entry:
            weights[name] = QuantizedWeights(
                arrays[f"{key}.codes"],
                arrays[f"{key}.scale"],
                entry["bits"],
                arrays[f"{key}.multiplier"] if entry["group"] else None,
                entry["group"],
            )
        if f"{key}.bias" in arrays:
            biases[name] = arrays[f"{key}.bias"]
    return weights, biases


def write_npz(arrays: Arrays, head: Mapping[str, Any]) -> bytes:
    """The content of an .npz of ``arrays`` and the JSON-ready ``head``."""
    named: Arrays = {**arrays, _HEAD: np.frombuffer(json.dumps(head).encode(), np.uint8)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **named)
    return stream.getvalue()


def read_npz(content: bytes) -> tuple[Arrays, Any]:
    """What :func:`write_npz` was given; raises one of :data:`UNREADABLE` for anything else."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if name != _HEAD}, json.loads(
            arrays[_HEAD].tobytes()
        )
