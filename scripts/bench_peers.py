"""Time networks in tvm_mpq, ONNX Runtime and OpenVINO, taking turns in one process; print a table of medians.

python scripts/bench_peers.py --networks resnet18 --threads 1,2 --json peers.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import networks
import numpy as np
import onnx
from numpy.typing import NDArray
from peers.calibration import INPUT, calibration_file
from peers.contestants import Contestant, OnnxRuntime, OpenVino
from peers.qdq import quantized
from peers.report import OURS, PEERS, Row, agreement_table, environment, table
from peers.rounds import interleave

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside

PRECISIONS = ("fp32", "w8a8")
# Enough for the ranges of a benchmark; the quantizer keeps every tensor of every sample in memory.
CALIBRATION_SAMPLES = 8
# Below this the outputs are not of the same network. No closer to 1, because the peers' int8 kernels saturate
# where the processor has AVX2 but no VNNI: 0.8 with trained EfficientNet-Lite0.
LEAST_CORRELATION = 0.5
_PEERS: dict[str, Callable[[Path, NDArray[np.float32], int], Contestant]] = dict(
    zip(PEERS, (OnnxRuntime, OpenVino), strict=True)
)


@dataclass
class Results:
    """What was measured: rows of medians and of minima, and how far outputs agree with fp32's."""

    medians: list[Row] = field(default_factory=list)
    minima: list[Row] = field(default_factory=list)
    agreement: dict[tuple[str, str, str], float] = field(default_factory=dict)


def time_network(name: str, options: argparse.Namespace, results: Results) -> None:
    """Add one network to ``results``.

    All precisions and contestants take turns with one number of threads, then with the next.
    """
    model = networks.load_network(name)
    calibration = calibration_file(name, CALIBRATION_SAMPLES, options.cache)
    with np.load(calibration) as arrays:
        samples = arrays[INPUT.name]
    x = np.ascontiguousarray(samples[:1])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{name}.onnx"
        onnx.save(model, source)
        files = {"fp32": source}
        if options.peers and "w8a8" in options.precisions:
            files["w8a8"] = quantized(model, samples, options.cache)
        makers: dict[tuple[str, str], Callable[[int], Contestant]] = {}
        for precision in options.precisions:
            if not options.without_ours:
                makers[precision, OURS] = _ours(source, calibration, x, precision, options.target)
            for peer in options.peers:
                makers[precision, peer] = partial(_PEERS[peer], files[precision], x)
        reference = OnnxRuntime(source, x, 1).output()
        for threads in options.threads:
            contestants = {key: make(threads) for key, make in makers.items()}
            for (precision, who), contestant in contestants.items():
                correlation = float(np.corrcoef(reference.ravel(), contestant.output().ravel())[0, 1])
                if not correlation >= LEAST_CORRELATION:
                    raise MpqError(
                        f"{who} computes something else for {name} at {precision}: its output correlates "
                        f"with fp32's at {correlation:.3f}, so its time means nothing"
                    )
                results.agreement[name, precision, who] = correlation
            seconds = interleave(contestants, options.rounds, options.calls)
            for precision in options.precisions:
                of_precision = {who: s for (p, who), s in seconds.items() if p == precision}
                results.medians.append(Row.of(name, precision, threads, of_precision))
                results.minima.append(Row.of(name, precision, threads, of_precision, np.min))


def _ours(
    source: Path, calibration: Path, x: NDArray[np.float32], precision: str, target: str
) -> Callable[[int], Contestant]:
    """Compile once; the function returned opens a session with so many threads."""
    from peers.ours import Ours, compiled

    package = compiled(source, calibration, precision, target)
    return lambda threads: Ours(package, x, threads)


def _choice(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--networks", type=_choice(networks.NETWORKS), default=list(networks.NETWORKS), metavar="A,B")
    add("--precisions", type=_choice(PRECISIONS), default=list(PRECISIONS), metavar="A,B")
    add("--threads", type=lambda text: [_positive(n) for n in text.split(",")], default=[1, 2], metavar="1,2")
    add("--rounds", type=_positive, default=15, help="turns of every contestant")
    add("--calls", type=_positive, default=5, help="timed inferences in a turn")
    add("--target", default="host", help="what tvm_mpq compiles for")
    add("--peers", type=_choice(PEERS), metavar="A,B", help="those installed by default; empty for none")
    add("--without-ours", action="store_true", help="time the peers only")
    add("--json", type=Path, metavar="FILE", help="write the rows as a list")
    add(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "tvm-mpq-bench",
        metavar="DIR",
        help="where quantized networks are kept",
    )
    return parser.parse_args(arguments)


def _installed(asked: list[str] | None) -> list[str]:
    """The peers to time; raises MpqError for one that was asked for and is not installed."""
    present = [peer for peer in PEERS if importlib.util.find_spec(peer) is not None]
    for peer in PEERS if asked is None else asked:
        if peer not in present:
            line = f"{peer} is not installed: pip install {peer}"
            if asked is not None:
                raise MpqError(line)
            print(f"{line}; its column stays empty", file=sys.stderr)
    return present if asked is None else asked


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    # The kernel places the threads of all contestants: pinned ones would wait for whoever holds their core.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    results = Results()
    try:
        options.peers = _installed(options.peers)
        print(environment(), flush=True)
        for name in options.networks:
            time_network(name, options, results)
            print(f"{name}: timed", file=sys.stderr, flush=True)
            if options.json is not None:
                content = json.dumps([row.to_json() for row in results.medians], indent=2) + "\n"
                write_beside(options.json, content.encode())
    except MpqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"median of {options.rounds * options.calls} inferences\n{table(results.medians)}")
    print(f"fastest of them, closer to a quiet machine\n{table(results.minima)}")
    print(f"correlation of one output with fp32's\n{agreement_table(results.agreement)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
