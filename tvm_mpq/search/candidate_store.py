"""Rounded candidates on disk: a search that is run again rounds nothing twice."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside
from tvm_mpq.quantization.weights_file import UNREADABLE, pack_weights, read_npz, unpack_weights, write_npz
from tvm_mpq.search.candidates import Candidates, Key, StepLength
from tvm_mpq.statistics import Interval

_SEPARATOR = "\n"


def load_candidates(folder: Path, key: str) -> Candidates | None:
    """What :func:`save_candidates` kept under ``key``; None where there is nothing, or nothing readable."""
    try:
        arrays, head = read_npz(_path(folder, key).read_bytes())
        weights, biases = unpack_weights(arrays, head["operators"])
        step = None if head["step"] is None else StepLength(head["step"][0], Interval(*head["step"][1:]))
    except UNREADABLE:
        return None
    return Candidates({_key(k): w for k, w in weights.items()}, {_key(k): b for k, b in biases.items()}, step)


def save_candidates(folder: Path, key: str, candidates: Candidates) -> None:
    """Keep ``candidates`` in ``folder``, named by ``key``; raises MpqError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MpqError(f"cannot make the folder {folder} for rounded weights: {error.strerror}") from None
    weights = {_SEPARATOR.join(k): w for k, w in candidates.weights.items()}
    biases = {_SEPARATOR.join(k): b for k, b in candidates.biases.items()}
    arrays, entries = pack_weights(weights, biases)
    found = candidates.step
    step = None if found is None else [found.part, *astuple(found.change)]
    write_beside(_path(folder, key), write_npz(arrays, {"operators": entries, "step": step}))


def _path(folder: Path, key: str) -> Path:
    return folder / f"rounded-{key[:16]}.npz"


def _key(text: str) -> Key:
    operator, precision = text.rsplit(_SEPARATOR, 1)
    return operator, precision
