"""Named arrays in .npz files."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside
from tvm_mpq.tensor_spec import TensorSpec


def load_arrays(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file by name; raises MpqError for anything else, pickled objects included."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise MpqError(f"{path} is a single array; save named ones with numpy.savez")
        with file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise MpqError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise MpqError(f"{path} is not a readable .npz of plain arrays: {error}") from None


def noise(specs: Iterable[TensorSpec], seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """An array for each input: normal floats, and zeros of any other dtype (an index that is always in range)."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for spec in specs:
        if np.issubdtype(np.dtype(spec.dtype), np.floating):
            arrays[spec.name] = rng.standard_normal(spec.shape).astype(spec.dtype)
        else:
            arrays[spec.name] = np.zeros(spec.shape, spec.dtype)
    return arrays


def save_arrays(path: str | Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write ``arrays`` to the .npz file ``path``, beside it first and then renamed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        # Not numpy.savez: its keyword arguments forbid an output called "file".
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            # Without a time of day, so that equal outputs give equal files.
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    write_beside(Path(path), stream.getvalue())
