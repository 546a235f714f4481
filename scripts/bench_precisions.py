"""Time one network at several precisions, taking turns in one process; print latency and bytes against the first.

python scripts/bench_precisions.py --networks efficientnet-lite0 --precisions w8a8,w6a8,w4a8 --threads 1,2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import networks
import numpy as np
import onnx
from peers.calibration import INPUT, calibration_file
from peers.ours import Ours, compiled
from peers.report import environment
from peers.rounds import interleave

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside
from tvm_mpq.precision import Precision
from tvm_mpq.runtime.package import Package

CALIBRATION_SAMPLES = 8


@dataclass(frozen=True)
class Line:
    """A network at a precision: median ms, bytes of its package, of its weights in memory, and ratios to the first."""

    network: str
    precision: str
    threads: int
    ms: float
    file_bytes: int
    weight_bytes: int
    latency_ratio: float
    weight_ratio: float


def time_network(name: str, options: argparse.Namespace) -> list[Line]:
    """All precisions of one network, in turns for each number of threads."""
    calibration = calibration_file(name, CALIBRATION_SAMPLES, options.cache)
    with np.load(calibration) as arrays:
        x = np.ascontiguousarray(arrays[INPUT.name][:1])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{name}.onnx"
        onnx.save(networks.load_network(name), source)
        packages = {p: compiled(source, calibration, p, options.target) for p in options.precisions}
    lines = []
    for threads in options.threads:
        sessions = {p: Ours(package, x, threads) for p, package in packages.items()}
        seconds = interleave(sessions, options.rounds, options.calls)
        ms = {p: float(np.median(values)) * 1e3 for p, values in seconds.items()}
        first = options.precisions[0]
        for p, package in packages.items():
            lines.append(
                Line(
                    network=name,
                    precision=p,
                    threads=threads,
                    ms=ms[p],
                    file_bytes=len(package.to_bytes()),
                    weight_bytes=_weights(package),
                    latency_ratio=ms[p] / ms[first],
                    weight_ratio=_weights(package) / _weights(packages[first]),
                )
            )
    return lines


def _weights(package: Package) -> int:
    return package.metadata.storage.weights_resident


def _print(lines: list[Line]) -> None:
    print(
        f"{'network':<20}{'precision':<11}{'threads':>7}{'ms':>9}{'× first':>9}{'file MB':>10}"
        f"{'weights MB':>12}{'× first':>9}"
    )
    for line in lines:
        print(
            f"{line.network:<20}{line.precision:<11}{line.threads:>7}{line.ms:>9.2f}{line.latency_ratio:>9.2f}"
            f"{line.file_bytes / 1e6:>10.2f}{line.weight_bytes / 1e6:>12.2f}{line.weight_ratio:>9.2f}"
        )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--networks", type=lambda text: text.split(","), default=list(networks.NETWORKS), metavar="A,B")
    add("--precisions", default="w8a8,w7a8,w6a8,w5a8,w4a8,w4g32a8", metavar="A,B")
    add("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2], metavar="1,2")
    add("--rounds", type=int, default=15, help="turns of every precision")
    add("--calls", type=int, default=5, help="timed inferences in a turn")
    add("--target", default="host", help="what tvm_mpq compiles for")
    add("--json", type=Path, metavar="FILE", help="write the lines as a list")
    add("--cache", type=Path, default=Path(tempfile.gettempdir()) / "tvm-mpq-bench", metavar="DIR")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    try:
        options.precisions = [str(Precision.parse(p)) for p in options.precisions.split(",")]
        unknown = [name for name in options.networks if name not in networks.NETWORKS]
        if unknown:
            raise MpqError(f"there is no network {unknown[0]!r}: use {', '.join(networks.NETWORKS)}")
        print(environment(), flush=True)
        lines = []
        for name in options.networks:
            lines += time_network(name, options)
            print(f"{name}: timed", file=sys.stderr, flush=True)
    except MpqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(lines)
    if options.json is not None:
        content = json.dumps([asdict(line) for line in lines], indent=2) + "\n"
        write_beside(options.json, content.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
