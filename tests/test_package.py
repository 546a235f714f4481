from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import tiny_package

from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import W8A8
from tvm_mpq.runtime.archive import CHECKSUMS, pack
from tvm_mpq.runtime.metadata import CalibrationInfo, Metadata
from tvm_mpq.runtime.package import Package, baseline_path

NAMES = ["metadata.json", "plan.json", "model.so", "weights.bin"]


@pytest.fixture(scope="module")
def package() -> Package:
    """A package whose weights nothing reads: what matters here is that they are kept and checked."""
    made, weights = tiny_package(), bytes(range(200))
    hashes = dataclasses.replace(made.metadata.hashes, weights=sha256(weights))
    return dataclasses.replace(
        made, metadata=dataclasses.replace(made.metadata, hashes=hashes), weights=weights
    )


def members(package: Package) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(package.to_bytes())) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.name != CHECKSUMS}


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A gzipped tar of entries as they are, right checksums for all of them in front."""
    stream = io.BytesIO()
    sums = "".join(f"{sha256(content)}  {entry.name}\n" for entry, content in entries).encode()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for entry, content in [(tarfile.TarInfo(CHECKSUMS), sums), *entries]:
            entry.size = len(content) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(content) if entry.isreg() else None)
    return stream.getvalue()


def with_metadata(package: Package, change) -> bytes:
    files = members(package)
    raw = json.loads(files["metadata.json"])
    change(raw)
    return pack({**files, "metadata.json": json.dumps(raw).encode()})


def failure(content: bytes) -> str:
    with pytest.raises(MpqError) as caught:
        Package.from_bytes(content, "m.tar")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("m.tar")
    return message


def test_loading_gives_what_was_saved(package, tmp_path):
    full = dataclasses.replace(
        package,
        metadata=dataclasses.replace(package.metadata, calibration=CalibrationInfo("minmax", 256, 0)),
    ).with_baseline("m.fp32.tar", package.to_bytes())
    full.save(tmp_path / "m.tar")
    loaded = Package.load(tmp_path / "m.tar")
    assert loaded == full
    assert loaded.metadata.baseline.sha256 == sha256(package.to_bytes())
    assert loaded.to_bytes() == (tmp_path / "m.tar").read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tar"]


def test_the_hashes_are_those_of_the_members(package):
    files = members(package)
    assert list(files) == NAMES
    assert package.metadata.hashes.library == sha256(files["model.so"])
    assert package.metadata.hashes.weights == sha256(files["weights.bin"])
    assert package.metadata.hashes.plan == sha256(files["plan.json"])


def test_sha256sum_and_tar_can_read_a_package(package, tmp_path):
    (tmp_path / "m.tar").write_bytes(package.to_bytes())
    subprocess.run(["tar", "xf", "m.tar"], cwd=tmp_path, check=True)
    done = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout.decode().split() == [part for name in NAMES for part in (f"{name}:", "OK")]


def test_equal_packages_have_equal_bytes_in_another_process_too(package):
    code = "from tiny_package import tiny_package; print(tiny_package().metadata.hashes.library)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == package.metadata.hashes.library
    again = Package(package.metadata, package.plan, bytes(bytearray(package.library)), package.weights)
    assert again.to_bytes() == package.to_bytes()


def test_the_baseline_is_named_after_the_package():
    assert baseline_path("out/model.tar") == Path("out/model.fp32.tar")


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_every_truncation_is_noticed(cut):
    content = tiny_package().to_bytes()
    failure(content[: int(cut * len(content))])


@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_every_altered_byte_is_noticed_or_harmless(where, flip):
    package = tiny_package()
    content = bytearray(package.to_bytes())
    content[int(where * len(content))] ^= flip
    message, loaded = "", None
    try:
        loaded = Package.from_bytes(bytes(content), "m.tar")
    except MpqError as error:
        message = str(error)
    # gzip's header has a time of day and flags that change nothing; all else is an error.
    assert loaded == package or message.startswith("m.tar")
    assert "\n" not in message


@pytest.mark.parametrize("name", NAMES)
def test_an_altered_member_is_named(package, name):
    files = members(package)
    entries = [(tarfile.TarInfo(n), c) for n, c in files.items()]
    content = archive(*entries)
    Package.from_bytes(content)  # right as it is
    altered = bytearray(gzip.decompress(content))
    at = altered.index(files[name][:64])
    altered[at + 10] ^= 1
    message = failure(gzip.compress(bytes(altered), mtime=0))
    assert message == f"m.tar was altered: {name} does not match its checksum"


def test_a_member_altered_with_its_checksum_is_noticed_by_the_metadata(package):
    files = members(package)
    other_plan = PrecisionPlan.uniform(["fc"], W8A8).to_json().encode()
    for name, content in (("plan.json", other_plan), ("weights.bin", bytes(200)), ("model.so", b"")):
        message = failure(pack({**files, name: content}))
        assert f"{name} does not match the hash in metadata.json" in message


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_member_is_named(package, name):
    files = members(package)
    del files[name]
    assert f"{name} is missing" in failure(pack(files))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.so", "unsafe path '../evil.so'"),
        ("a/../../evil.so", "unsafe path"),
        ("/etc/passwd", "unsafe path '/etc/passwd'"),
        ("extra.txt", "unknown member 'extra.txt'"),
        ("plan.json", "twice the member 'plan.json'"),
    ],
)
def test_members_that_do_not_belong_are_refused(package, name, message):
    entries = [(tarfile.TarInfo(n), c) for n, c in members(package).items()]
    assert message in failure(archive(*entries, (tarfile.TarInfo(name), b"x")))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_refused(package, kind):
    entries = [(tarfile.TarInfo(n), c) for n, c in members(package).items() if n != "model.so"]
    link = tarfile.TarInfo("model.so")
    link.type, link.linkname = kind, "/etc/passwd"
    assert "member 'model.so' is a link or device, not a file" in failure(archive(*entries, (link, b"")))


def test_an_oversize_member_is_refused_unread(package):
    header = tarfile.TarInfo("metadata.json")
    header.size = 1 << 40
    sums = tarfile.TarInfo(CHECKSUMS)
    assert "more than" in failure(gzip.compress(sums.tobuf() + header.tobuf() + bytes(1024)))


@pytest.mark.parametrize("content", [b"", b"not a package", bytes(10240), gzip.compress(b"x" * 600, mtime=0)])
def test_what_is_no_package_is_refused(content):
    failure(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(schema_version=5), "schema version 5, this tvm_mpq reads 4; install a newer"),
        (lambda raw: raw.update(schema_version="1"), "schema version '1'"),
        (lambda raw: raw.pop("inputs"), "lacks the field 'inputs'"),
        (lambda raw: raw.update(inputs=[]), "names no inputs"),
        (lambda raw: raw.update(colour="red"), "unknown field 'colour'"),
        (lambda raw: raw["inputs"][0].update(shape=[1, "2"]), "inputs[0]: shape[1] must be int, not '2'"),
        (lambda raw: raw["storage"].update(weights=True), "storage: weights must be int, not True"),
        (lambda raw: raw.update(hashes=None), "hashes must be an object, not None"),
        (lambda raw: raw["target"].update(features="avx2"), "features must be"),
    ],
)
def test_wrong_metadata_is_answered_with_the_field_at_fault(package, change, message):
    assert message in failure(with_metadata(package, change))


def test_metadata_that_is_no_json_is_refused(package):
    assert "not valid JSON" in failure(pack({**members(package), "metadata.json": b"{"}))
    assert "not text" in failure(pack({**members(package), "metadata.json": b"\xff\xfe"}))


def test_metadata_survives_its_own_text(package):
    assert Metadata.from_json(package.metadata.to_json(), "m") == package.metadata


def test_a_missing_file_and_folder_are_named(package, tmp_path):
    with pytest.raises(MpqError, match=r"cannot read the package .*none\.tar: No such file"):
        Package.load(tmp_path / "none.tar")
    with pytest.raises(MpqError, match="Is a directory"):
        Package.load(tmp_path)
    with pytest.raises(MpqError, match=r"cannot write .*none/m\.tar"):
        package.save(tmp_path / "none" / "m.tar")
