"""Tuning logs: what is written is read, torn and foreign lines are named, concatenation merges, the best is used."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tvm_mpq.errors import MpqError
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.winograd import WinogradTile
from tvm_mpq.target import host_target, load_target
from tvm_mpq.tuning import record as record_module
from tvm_mpq.tuning.log import TuningLog, append, log_file, log_folder
from tvm_mpq.tuning.lookup import TunedTiles, tuned_tiles
from tvm_mpq.tuning.record import TuningRecord

SAME = (1, 1, 1, 1)
CONVOLUTION = KernelSpec(
    "conv2d",
    ConvolutionShape(1, 14, 14, 32, 64, (3, 3), (1, 1), SAME),
    "uint8",
    Output("uint8"),
    "avx2",
    int16_words=1,
)
DEPTHWISE = KernelSpec(
    "depthwise",
    ConvolutionShape(1, 14, 14, 32, 32, (3, 3), (1, 1), SAME, groups=32),
    "float32",
    Output("float32"),
    "avx2",
)
PATH = "logs/x86-64-v3/some-cpu.jsonl"


def record(spec: KernelSpec = CONVOLUTION, at: int = 1, **changes: object) -> TuningRecord:
    made = TuningRecord(
        spec=spec,
        tile=spec.space()[at],
        threads=1,
        seconds=1e-4,
        default_seconds=2e-4,
        stage="final",
        trials=16,
        cpu="Some CPU",
        seed=0,
        versions={"tvm": "0.27"},
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("spec", [CONVOLUTION, DEPTHWISE])
@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_line_reads_as_it_was_written(spec: KernelSpec, at: int) -> None:
    written = record(spec, at, seconds=None if at == 0 else 1.25e-4)
    line = written.to_line()
    assert line.count("\n") == 1
    assert TuningRecord.from_line(line) == written


def test_winograd_tiles_that_name_no_width_are_of_two_outputs_and_still_used() -> None:
    spec = dataclasses.replace(CONVOLUTION, shape=ConvolutionShape(1, 56, 56, 64, 64, (3, 3), (1, 1), SAME))
    tile = WinogradTile(4, 28, 4, 4, False, True)
    line = record(spec, tile=tile).to_line()
    old = line.replace('"across": 2, ', "")
    assert old != line
    read = TuningRecord.from_line(old)
    assert read is not None
    assert read.tile == tile
    assert TunedTiles({spec: read.tile})(spec) == tile


def test_a_torn_last_line_is_named_and_left_out_and_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / PATH
    append(path, [record(), record(at=2)])
    path.write_bytes(path.read_bytes()[:-30])
    log = TuningLog.read(path.parent)
    assert log.records == [record()]
    assert len(log.notes) == 1
    assert "line 2 is torn" in log.notes[0]
    append(path, [record(at=3)])
    log = TuningLog.read(path.parent)
    assert log.records == [record(), record(at=3)]
    assert "line 2 is not a tuning record" in log.notes[0]


def test_concatenated_logs_are_the_merged_log(tmp_path: Path) -> None:
    slow, fast = record(at=1, seconds=1.9e-4), record(at=2, seconds=1e-4)
    other = record(DEPTHWISE, at=3)
    append(tmp_path / "a.jsonl", [slow])
    append(tmp_path / "b.jsonl", [fast, other])
    merged = tmp_path / "merged"
    merged.mkdir()
    text = (tmp_path / "b.jsonl").read_bytes() + (tmp_path / "a.jsonl").read_bytes()
    (merged / "c.jsonl").write_bytes(text)
    log = TuningLog.read(merged)
    assert log.best(threads=1) == {CONVOLUTION: fast.tile, DEPTHWISE: other.tile}
    assert TuningLog.read(tmp_path).best(threads=1) == log.best(threads=1)


def test_only_finished_searches_with_the_same_threads_are_used_and_the_own_processor_first() -> None:
    log = TuningLog(
        [
            record(at=1, stage="search", seconds=1e-6),
            record(at=2, threads=2, seconds=1e-6),
            record(at=3, seconds=1e-6, cpu="Another"),
            record(at=4),
        ]
    )
    tiles = CONVOLUTION.space()
    assert log.best(threads=1) == {CONVOLUTION: tiles[3]}
    assert log.best(threads=1, cpu="Some CPU") == {CONVOLUTION: tiles[4]}
    assert log.best(threads=2) == {CONVOLUTION: tiles[2]}
    assert log.best(threads=3) == {}


def test_records_of_other_template_versions_are_left_out_with_a_note(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / PATH
    append(path, [record(at=1), record(DEPTHWISE)])
    versions = {**record_module.TEMPLATE_VERSIONS, "depthwise": 99}
    monkeypatch.setattr(record_module, "TEMPLATE_VERSIONS", versions)
    log = TuningLog.read(path.parent)
    assert [r.spec for r in log.records] == [CONVOLUTION]
    assert "1 records are of other versions" in log.notes[0]


def test_a_tile_that_is_none_of_its_kernel_is_left_out_with_a_note() -> None:
    strange = dataclasses.replace(CONVOLUTION.space()[0], rows=1000)
    tiles = TunedTiles({CONVOLUTION: strange})
    assert tiles(CONVOLUTION) is None
    assert tiles(CONVOLUTION) is None
    assert len(tiles.notes) == 1
    assert "rows=1000" in tiles.notes[0]


def test_a_folder_of_logs_that_is_not_there_or_not_readable_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(MpqError, match="there is no folder"):
        tuned_tiles(load_target("haswell"), tmp_path / "nothing")
    path = tmp_path / "haswell" / "bad.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(MpqError, match="cannot read the tuning log"):
        tuned_tiles(load_target("haswell"), tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(MpqError, match="cannot write the tuning log"):
        append(path, [record()])


def test_the_host_shares_its_logs_with_its_level() -> None:
    flags = frozenset(load_target("x86-64-v3").features)
    root = Path("logs")
    assert log_folder(root, host_target(flags)) == log_folder(root, load_target("x86-64-v3"))
    assert log_folder(root, load_target("haswell")) == root / "haswell"
    name = log_file(root, "AMD EPYC 7B13 (Zen 3)").name
    assert name == "amd-epyc-7b13-zen-3.jsonl"
