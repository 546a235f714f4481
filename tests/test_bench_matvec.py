"""The benchmark of one row: every precision in every place, ratios and rates that belong to the times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import bench_matvec


def test_times_every_precision_and_writes_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lines.json"
    arguments = ["--inputs", "256", "--outputs", "128", "--threads", "1", "--rounds", "2", "--calls", "3"]
    assert bench_matvec.main([*arguments, "--json", str(file)]) == 0
    lines = json.loads(file.read_text())
    names = ["w8a8", "w4a8", "w4g32a8", "w4g32a32", "fp32"]
    assert [(line["precision"], line["weights_from"]) for line in lines] == [
        (name, place) for place in ("cache", "memory") for name in names
    ]
    sizes = {line["precision"]: line["weight_bytes"] for line in lines}
    assert sizes["fp32"] == 4 * sizes["w8a8"] == 8 * sizes["w4a8"] == 4 * 256 * 128
    assert sizes["w4g32a8"] == sizes["w4g32a32"] == sizes["w4a8"] + 256 // 32 * 128
    for line in lines:
        base = next(
            other
            for other in lines
            if other["precision"] == "w8a8" and other["weights_from"] == line["weights_from"]
        )
        assert line["ratio"] == pytest.approx(line["us"] / base["us"])
        assert line["gb_per_second"] == pytest.approx(line["weight_bytes"] / line["us"] / 1e3)
    assert capsys.readouterr().out.count("w4g32a32") == 2
