"""What an interrupted analysis had already computed."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside

Array = npt.NDArray[Any]
_SECONDS = 5.0
"""Between two writings: so much work is lost at most."""


class SampleCache:
    """A file in ``folder``, named by the hash ``key`` of everything it depends on: losses and products so far."""

    def __init__(self, folder: Path, key: str) -> None:
        """Raises MpqError where ``folder`` cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MpqError(f"cannot make the cache folder {folder}: {error.strerror}") from None
        self._path = folder / f"{key}.npz"
        self._written = time.monotonic()

    def load(self, losses: list[Array], values: list[Array]) -> str:
        """Append what is there and return what was kept with it; a damaged file counts as none, and gives ""."""
        try:
            with np.load(self._path, allow_pickle=False) as found:
                parts = found["losses"], found["values"], str(found["places"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return ""
        losses.append(parts[0])
        values.append(parts[1])
        return parts[2]

    def keep(self, losses: list[Array], values: list[Array], places: str, last: bool) -> None:
        """Write everything so far, now and then and when it is the ``last`` time; ``places`` says what values are."""
        if not last and time.monotonic() - self._written < _SECONDS:
            return
        content = io.BytesIO()
        joined = np.concatenate(losses), np.concatenate(values, axis=1)
        np.savez(content, losses=joined[0], values=joined[1], places=np.array(places))
        write_beside(self._path, content.getvalue())
        self._written = time.monotonic()
