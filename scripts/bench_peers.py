"""Time networks in tvm_mpq, ONNX Runtime and OpenVINO, taking turns in one process; print a table of medians.

python scripts/bench_peers.py --networks resnet18 --threads 1,2 --json peers.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import networks
import numpy as np
import onnx
from numpy.typing import NDArray
from peers.calibration import calibration
from peers.contestants import Contestant, OnnxRuntime, OpenVino
from peers.qdq import quantized
from peers.report import OURS, PEERS, Row, environment, table
from peers.rounds import interleave

from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside

PRECISIONS = ("fp32", "w8a8")
# Enough for the ranges of a benchmark; the quantizer keeps every tensor of every sample in memory.
CALIBRATION_SAMPLES = 8
# Below this the outputs are not of the same network: int8 of random networks stays well above.
LEAST_CORRELATION = 0.9
_PEERS: dict[str, Callable[[Path, NDArray[np.float32], int], Contestant]] = dict(
    zip(PEERS, (OnnxRuntime, OpenVino), strict=True)
)


def time_network(name: str, options: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Rows of one network, of medians and of minima.

    All precisions and contestants take turns with one number of threads, then with the next.
    """
    model = networks.load_network(name)
    data = calibration(name, CALIBRATION_SAMPLES, options.cache)
    samples = data.batch(range(len(data)))["input"]
    x = np.ascontiguousarray(samples[:1])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{name}.onnx"
        onnx.save(model, source)
        files = {"fp32": source}
        if options.peers and "w8a8" in options.precisions:
            files["w8a8"] = quantized(model, samples, options.cache)
        makers: dict[tuple[str, str], Callable[[int], Contestant]] = {}
        for precision in options.precisions:
            for peer in options.peers:
                makers[precision, peer] = partial(_PEERS[peer], files[precision], x)
            if not options.without_ours:
                makers[precision, OURS] = _ours(source, data, x, precision, options.target)
        medians, minima = [], []
        for threads in options.threads:
            contestants = {key: make(threads) for key, make in makers.items()}
            _check_outputs(name, contestants)
            seconds = interleave(contestants, options.rounds, options.calls)
            for precision in options.precisions:
                of_precision = {who: s for (p, who), s in seconds.items() if p == precision}
                medians.append(Row.of(name, precision, threads, of_precision))
                minima.append(Row.of(name, precision, threads, of_precision, np.min))
    return medians, minima


def _ours(
    source: Path, data: Dataset, x: NDArray[np.float32], precision: str, target: str
) -> Callable[[int], Contestant]:
    """Compile once; the function returned opens a session with so many threads."""
    from peers.ours import Ours, compiled

    package = compiled(source, data, precision, target)
    return lambda threads: Ours(package, x, threads)


def _check_outputs(network: str, contestants: dict[tuple[str, str], Contestant]) -> None:
    """Raise MpqError where a contestant computes something else than the first one does."""
    reference: NDArray[np.float32] | None = None
    for (precision, who), contestant in contestants.items():
        output = contestant.output().ravel()
        reference = output if reference is None else reference
        correlation = float(np.corrcoef(reference, output)[0, 1])
        if not correlation >= LEAST_CORRELATION:
            raise MpqError(
                f"{who} computes something else for {network} at {precision}: its output correlates with the "
                f"first contestant's at {correlation:.3f}, so its time means nothing"
            )


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
    add("--peers", type=_choice(PEERS), default=list(PEERS), metavar="A,B", help="empty for none")
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


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    # The kernel places the threads of all contestants: pinned ones would wait for whoever holds their core.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    medians: list[Row] = []
    minima: list[Row] = []
    try:
        print(environment(), flush=True)
        for name in options.networks:
            of_network = time_network(name, options)
            medians += of_network[0]
            minima += of_network[1]
            print(f"{name}: timed", file=sys.stderr, flush=True)
            if options.json is not None:
                content = json.dumps([row.to_json() for row in medians], indent=2) + "\n"
                write_beside(options.json, content.encode())
    except MpqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"median of {options.rounds * options.calls} inferences\n{table(medians)}")
    print(f"fastest of them, closer to a quiet machine\n{table(minima)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
