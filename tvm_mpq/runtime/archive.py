"""The package's file format: a gzipped tar of a few files and their checksums; same input, same bytes.

gzip and not xz: quantized weights hardly compress (8 % with either), and gzip reads ten times faster.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping

from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256

CHECKSUMS = "SHA256SUMS"
_LEVEL = 6


def pack(members: Mapping[str, bytes]) -> bytes:
    """The archive of ``members`` (name → content) and their checksums, which ``sha256sum -c`` reads too."""
    sums = "".join(f"{sha256(content)}  {name}\n" for name, content in members.items())
    stream = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=_LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in {CHECKSUMS: sums.encode(), **members}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def unpack(content: bytes, limits: Mapping[str, int], source: str) -> dict[str, bytes]:
    """The members of an archive that :func:`pack` made, checked; nothing is written to disk.

    ``limits`` gives each expected member and its largest size in bytes. Raises MpqError that names
    ``source`` for an archive that is truncated or altered, for a missing, unknown, doubled or oversize
    member, for a path out of the archive, and for anything that is not a regular file.
    """
    limits = {CHECKSUMS: 4096, **limits}
    members: dict[str, bytes] = {}
    try:
        with (
            gzip.GzipFile(fileobj=io.BytesIO(content)) as packed,
            tarfile.open(fileobj=packed, mode="r|") as tar,
        ):
            for entry in tar:
                _check(entry, members, limits, source)
                stream = tar.extractfile(entry)
                assert stream is not None  # a regular file, by the check
                members[entry.name] = stream.read(entry.size)
            # To the end, so that gzip's own checksum is looked at; a bomb may hide there, so in pieces.
            while packed.read(1 << 20):
                pass
    except gzip.BadGzipFile:
        raise MpqError(f"{source} is damaged or not a tvm_mpq package") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError):
        raise MpqError(f"{source} is truncated or damaged: copy or compile it again") from None
    for name in limits:
        if name not in members:
            raise MpqError(f"{source} is not a complete package: {name} is missing; copy or compile it again")
    _check_sums(members, source)
    del members[CHECKSUMS]
    return members


def _check(entry: tarfile.TarInfo, seen: Mapping[str, bytes], limits: Mapping[str, int], source: str) -> None:
    name = entry.name
    if name.startswith("/") or ".." in name.split("/"):
        raise MpqError(f"{source} holds the unsafe path {name!r}: it is not a package tvm_mpq made")
    if name not in limits or name in seen:
        kind = "twice the" if name in seen else "an unknown"
        raise MpqError(f"{source} holds {kind} member {name!r}: it is not a package tvm_mpq made")
    if not entry.isreg() or entry.issparse():
        raise MpqError(f"{source}: member {name!r} is a link or device, not a file")
    if entry.size > limits[name]:
        raise MpqError(f"{source}: member {name!r} has {entry.size} bytes, more than {limits[name]} allowed")


def _check_sums(members: Mapping[str, bytes], source: str) -> None:
    expected = "".join(
        f"{sha256(content)}  {name}\n" for name, content in members.items() if name != CHECKSUMS
    )
    given = members[CHECKSUMS].decode("ascii", "replace")
    if given == expected:
        return
    wrong = [line.split("  ")[-1] for line in expected.splitlines() if line not in given.splitlines()]
    raise MpqError(f"{source} was altered: {', '.join(wrong) or CHECKSUMS} does not match its checksum")
