"""Time a matrix times one row at several precisions, taking turns in one process; print ratios to w8a8 and GB/s.

Twice: with weights that stay in the cache they fit, and with weights that come from memory each time, as those of a
network do that is larger than every cache.

python scripts/bench_matvec.py --inputs 4096 --outputs 4096 --threads 1,2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from peers.contestants import time_calls
from peers.report import environment
from peers.rounds import interleave

from tvm_mpq.cpu import cache_bytes
from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.quantization.int16_sums import SUM_WORDS
from tvm_mpq.runtime.threads import run_with_threads
from tvm_mpq.target import Target, host_target
from tvm_mpq.transform.small_buffers import compile_kernels

BASE = "w8a8"
PLACES = ("cache", "memory")
_CACHES = 3
"""Copies of the weights fill the last cache so many times before the first is read again."""


@dataclass(frozen=True)
class Line:
    """One precision: median microseconds of a call, ratio to w8a8's, and bytes of weights over the time."""

    precision: str
    weights_from: str
    threads: int
    us: float
    ratio: float
    weight_bytes: int
    gb_per_second: float


def specs(inputs: int, outputs: int, instruction: str) -> dict[str, KernelSpec]:
    """The kernels that a network's matrix multiplication of one row gets."""
    shape = ConvolutionShape(1, 1, 1, inputs, outputs)

    def integer(bits: int, group: int = 0) -> KernelSpec:
        words = SUM_WORDS.get(bits, 0) if not group else 0
        return KernelSpec("matmul", shape, "uint8", Output("uint8"), instruction, bits, group, words)

    def floating(family: str, bits: int = 8, group: int = 0) -> KernelSpec:
        return KernelSpec(family, shape, "float32", Output("float32"), instruction, bits, group)

    kernels = {
        "w8a8": integer(8),
        "w4a8": integer(4),
        "w4g32a8": integer(4, 32),
        "w4g32a32": floating("weight_only", 4, 32),
        "fp32": floating("matmul"),
    }
    return {name: spec.with_tile(None) for name, spec in kernels.items()}


class Multiplication:
    """A built kernel with as many copies of its weights as are wanted, read in turn."""

    def __init__(self, spec: KernelSpec, target: Target, threads: int, from_memory: bool) -> None:
        function = spec.schedule()
        self._kernel = compile_kernels(tvm.IRModule({"main": function}), target.tvm_target())["main"]
        self._threads = threads
        rng = np.random.default_rng(0)
        values = [_numbers(p, rng) for p in function.params]
        # x first; then weights and, where there are groups, their factors, whose bytes are not floats.
        self.weight_bytes = values[1].nbytes + (values[2].nbytes if values[2].dtype.itemsize == 1 else 0)
        copies = 1
        if from_memory:
            copies += math.ceil(_CACHES * cache_bytes(3) / self.weight_bytes)
        tensors = [tvm.runtime.tensor(value) for value in values]
        each = [[tensors[0], tvm.runtime.tensor(values[1]), *tensors[2:]] for _ in range(copies)]
        self._arguments = cycle(each)

    def time(self, calls: int, warmup: int) -> NDArray[np.float64]:
        """Seconds of each call."""
        return run_with_threads(
            self._threads, lambda: time_calls(lambda: self._kernel(*next(self._arguments)), calls, warmup)
        )

    def output(self) -> NDArray[np.float32]:
        """What is computed is of no interest here."""
        raise NotImplementedError


def _numbers(parameter: Any, rng: np.random.Generator) -> NDArray[Any]:
    shape, dtype = [int(extent) for extent in parameter.shape], str(parameter.dtype)
    if dtype == "float32":
        return rng.random(shape, np.float32) * np.float32(1e-4)
    return rng.integers(1, 8, shape).astype(dtype)


def measure(options: argparse.Namespace) -> list[Line]:
    """A line for each number of threads, place of the weights and precision."""
    target = host_target()
    lines = []
    for threads in options.threads:
        for place in PLACES:
            kernels = {
                name: Multiplication(spec, target, threads, place == "memory")
                for name, spec in specs(options.inputs, options.outputs, target.instruction).items()
            }
            seconds = interleave(kernels, options.rounds, options.calls)
            us = {name: float(np.median(values)) * 1e6 for name, values in seconds.items()}
            for name, kernel in kernels.items():
                rate = kernel.weight_bytes / us[name] / 1e3
                lines.append(
                    Line(name, place, threads, us[name], us[name] / us[BASE], kernel.weight_bytes, rate)
                )
    return lines


def _print(lines: list[Line]) -> None:
    print(f"{'precision':<11}{'weights from':<14}{'threads':>7}{'µs':>10}{'× w8a8':>9}{'MB':>8}{'GB/s':>8}")
    for line in lines:
        print(
            f"{line.precision:<11}{line.weights_from:<14}{line.threads:>7}{line.us:>10.1f}{line.ratio:>9.2f}"
            f"{line.weight_bytes / 1e6:>8.2f}{line.gb_per_second:>8.1f}"
        )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--inputs", type=int, default=4096, metavar="N", help="elements of the row")
    add("--outputs", type=int, default=4096, metavar="N", help="columns of the matrix")
    add("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2], metavar="1,2")
    add("--rounds", type=int, default=15, help="turns of every precision")
    add("--calls", type=int, default=20, help="timed multiplications in a turn")
    add("--json", type=Path, metavar="FILE", help="write the lines as a list")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    try:
        print(environment(), flush=True)
        lines = measure(options)
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
