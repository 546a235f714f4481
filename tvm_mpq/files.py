"""Writing files so that what was there before survives a failure; and naming their content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from tvm_mpq.errors import MpqError


def write_beside(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file in the same folder, then rename it to ``path``.

    Raises MpqError when the folder is missing or not writable; ``path`` is then as it was.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise MpqError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise MpqError(f"cannot write {path}: {error.strerror}") from None
    except BaseException:
        os.unlink(temporary)
        raise


def user_cache(part: str) -> Path:
    """The folder ``tvm-mpq/<part>`` in the user's cache folder (``XDG_CACHE_HOME``)."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tvm-mpq" / part


def sha256(content: bytes) -> str:
    """The SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
