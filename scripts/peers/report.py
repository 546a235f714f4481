"""From seconds to the rows, ratios and lines that the benchmark prints."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from tvm_mpq.cpu import cpu_features, cpu_name

OURS = "ours"
PEERS = ("onnxruntime", "openvino")
_TOLD = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
_TOLD_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")


@dataclass(frozen=True)
class Row:
    """Latency in ms of one network at one precision and number of threads; None = did not take part.

    ``speedup_to_best`` is the fastest peer's latency over ours.
    """

    network: str
    precision: str
    threads: int
    ours_ms: float | None
    onnxruntime_ms: float | None
    openvino_ms: float | None
    speedup_to_best: float | None

    @classmethod
    def of(
        cls,
        network: str,
        precision: str,
        threads: int,
        seconds: Mapping[str, NDArray[np.float64]],
        statistic: Callable[[NDArray[np.float64]], float] = np.median,
    ) -> Row:
        """The row of ``seconds``: contestant → seconds of its inferences, reduced by ``statistic``."""
        ms = {name: float(statistic(values)) * 1e3 for name, values in seconds.items()}
        ours, peers = ms.get(OURS), [ms[peer] for peer in PEERS if peer in ms]
        speedup = min(peers) / ours if ours is not None and peers else None
        return cls(network, precision, threads, ours, ms.get(PEERS[0]), ms.get(PEERS[1]), speedup)

    def to_json(self) -> dict[str, str | int | float | None]:
        """The fields as JSON values."""
        return asdict(self)


def table(rows: Sequence[Row]) -> str:
    """One line a row, and the geometric means of the ratios (below 1: ours is faster)."""
    lines = [
        f"{'network':<20}{'precision':<11}{'threads':>7}{'ours ms':>10}{'ORT ms':>10}{'OpenVINO ms':>13}"
        f"{'ours/ORT':>10}{'ours/OV':>9}{'speed-up':>10}"
    ]
    for row in rows:
        lines.append(
            f"{row.network:<20}{row.precision:<11}{row.threads:>7}{_number(row.ours_ms):>10}"
            f"{_number(row.onnxruntime_ms):>10}{_number(row.openvino_ms):>13}"
            f"{_number(_ratio(row.ours_ms, row.onnxruntime_ms)):>10}"
            f"{_number(_ratio(row.ours_ms, row.openvino_ms)):>9}{_number(row.speedup_to_best):>10}"
        )
    for precision, threads in dict.fromkeys((row.precision, row.threads) for row in rows):
        group = [row for row in rows if (row.precision, row.threads) == (precision, threads)]
        to_ort = geometric_mean([_ratio(row.ours_ms, row.onnxruntime_ms) for row in group])
        to_openvino = geometric_mean([_ratio(row.ours_ms, row.openvino_ms) for row in group])
        speedup = geometric_mean([row.speedup_to_best for row in group])
        lines.append(
            f"{'geometric mean':<20}{precision:<11}{threads:>7}{'':>33}"
            f"{_number(to_ort):>10}{_number(to_openvino):>9}{_number(speedup):>10}"
        )
    return "\n".join(lines)


def agreement_table(agreement: Mapping[tuple[str, str, str], float]) -> str:
    """(network, precision, contestant) → correlation of its output with fp32's, as one line a network."""
    lines = []
    for network, precision in dict.fromkeys((network, precision) for network, precision, _ in agreement):
        values = {who: value for (n, p, who), value in agreement.items() if (n, p) == (network, precision)}
        cells = "   ".join(f"{who} {value:.4f}" for who, value in values.items())
        lines.append(f"{network:<20}{precision:<11}{cells}")
    return "\n".join(lines)


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """The geometric mean of ``values``; None where any is missing, since it would then hide a network."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return None
    return math.exp(sum(map(math.log, present)) / len(present))


def environment() -> str:
    """Two lines: the processor with its instruction sets, and the versions of all runtimes."""
    told = (*_TOLD, *_TOLD_ARM)
    features = " ".join(name for name in told if name in cpu_features())
    versions = [f"python {platform.python_version()}"]
    for package in ("tvm-mpq", "apache-tvm", "onnxruntime", "openvino", "onnx", "numpy"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{cpu_name()}: {features}\n{', '.join(versions)}"


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
