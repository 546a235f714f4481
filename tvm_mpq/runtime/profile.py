"""Where the time of a package goes: every operator and every border against what this machine could do at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mpq.cost.empty_calls import measure_empty_calls
from tvm_mpq.cost.peaks import Peaks, measure_peaks
from tvm_mpq.cost.roofline import bound
from tvm_mpq.errors import MpqError
from tvm_mpq.runtime.metadata import KernelCall, Metadata
from tvm_mpq.runtime.session import Session, check_repeat
from tvm_mpq.runtime.tracer import Trace, typical

_BLOCKS = 10


@dataclass(frozen=True)
class ProfileRow:
    """An operator, or a conversion at a border (``kind`` is then its role and ``name`` says from where to where).

    Times are in microseconds of one run: medians over runs, which add up to the median run. ``bound_us`` is the
    roofline's, ``bound_by`` "compute" or "memory". ``gops`` counts two operations a multiply-accumulate (0 without
    any). ``peak_share`` is the part of the measured peak of ``step`` that its least work takes; the other shares are of
    reading bandwidths.
    """

    name: str
    kind: str
    precision: str
    kernels: tuple[str, ...]
    calls: int
    time_us: float
    macs: int
    gops: float
    bytes: int
    step: str
    peak_share: float | None
    memory_share: float
    last_cache_share: float
    bound_us: float
    bound_by: str

    @property
    def lost_us(self) -> float:
        """Time over the roof."""
        return self.time_us - self.bound_us

    @property
    def over(self) -> float:
        """Time as a multiple of the roof."""
        return self.time_us / self.bound_us if self.bound_us else float("inf")


@dataclass(frozen=True)
class Profile:
    """Rows sorted by time lost, most first. ``network_us`` is the whole network undisturbed, measured in turns.

    ``instrument_us`` is what was subtracted for the instrument, of all calls together.
    """

    rows: tuple[ProfileRow, ...]
    peaks: Peaks
    network_us: float
    instrument_us: float
    runs: int

    @property
    def sum_us(self) -> float:
        """All rows' time."""
        return sum(row.time_us for row in self.rows)

    @property
    def furthest(self) -> tuple[ProfileRow, ...]:
        """The three rows that lose most time over their roofs."""
        return self.rows[:3]

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON-ready values."""
        rows = [
            {**dataclasses.asdict(row), "lost_us": row.lost_us, "over": row.over if row.bound_us else None}
            for row in self.rows
        ]
        return {
            **dataclasses.asdict(self),
            "rows": rows,
            "sum_us": self.sum_us,
            "sum_over_network": self.sum_us / self.network_us,
            "furthest": [row.name for row in self.furthest],
        }


def profile(session: Session, inputs: Mapping[str, npt.NDArray[Any]], repeat: int = 50) -> Profile:
    """Time each kernel call of ``repeat`` runs on ``inputs``, in turns with as many undisturbed runs.

    Raises MpqError for a package that does not say which kernels it calls, and for inputs that do not fit.
    """
    check_repeat(repeat)
    metadata = session.package.metadata
    if not metadata.calls:
        raise MpqError("the package does not say which kernels it calls; compile it again to profile it")
    tracer = session.tracer()
    traces, whole = [], []
    for block in np.array_split(np.arange(repeat), min(_BLOCKS, repeat)):
        traces.append(tracer.trace(inputs, len(block)))
        whole.append(session.time(inputs, len(block)))
    seconds, instrument = net_seconds(traces, metadata)
    steps = {call.step for call in metadata.calls if call.step}
    peaks = measure_peaks(steps, metadata.target.tvm, session.threads)
    rows = _rows(metadata, seconds, peaks)
    return Profile(
        tuple(sorted(rows, key=lambda row: -row.lost_us)),
        peaks,
        float(np.median(np.concatenate(whole)) * 1e6),
        instrument * 1e6,
        repeat,
    )


def net_seconds(traces: list[Trace], metadata: Metadata) -> tuple[npt.NDArray[np.float64], float]:
    """Seconds of each of the package's calls, float64 [runs, calls], less the instrument's; and that of all calls."""
    expected = tuple(call.kernel for call in metadata.calls)
    for trace in traces:
        if trace.kernels != expected:
            raise MpqError("the package calls other kernels than its metadata lists; compile it again")
    empty = measure_empty_calls(metadata.target.tvm)
    raw = np.concatenate([trace.seconds for trace in traces])
    arguments = traces[0].arguments
    return empty.net(raw, arguments), float(empty.instrument(arguments).sum())


def _rows(metadata: Metadata, seconds: npt.NDArray[np.float64], peaks: Peaks) -> list[ProfileRow]:
    times = typical(seconds)
    constants = sum(call.constant_bytes for call in metadata.calls)
    operators = {operator.name: operator for operator in metadata.operators}
    groups: dict[tuple[str, str, str], list[int]] = {}
    for index, call in enumerate(metadata.calls):
        groups.setdefault((call.role, call.operator, call.reader), []).append(index)
    rows = []
    for (role, name, reader), indices in groups.items():
        calls = [metadata.calls[index] for index in indices]
        kind, precision = role, ""
        if role == "operator":
            kind, precision = operators[name].kind, operators[name].executed
        else:
            name = f"{name} → {reader or 'output'}"
        time = float(times[indices].sum())
        rows.append(_row(name, kind, precision, calls, time, peaks, constants))
    return rows


def _row(
    name: str, kind: str, precision: str, calls: list[KernelCall], time: float, peaks: Peaks, constants: int
) -> ProfileRow:
    bounds = [bound(call, peaks, constants) for call in calls]
    compute, memory = sum(b.compute for b in bounds), sum(b.memory for b in bounds)
    macs = sum(call.macs for call in calls)
    moved = sum(call.constant_bytes + call.input_bytes + call.output_bytes for call in calls)
    rate = 1.0 / time
    return ProfileRow(
        name=name,
        kind=kind,
        precision=precision,
        kernels=tuple(call.kernel for call in calls),
        calls=len(calls),
        time_us=time * 1e6,
        macs=macs,
        gops=2e-9 * macs * rate,
        bytes=moved,
        step=next((call.step for call in calls if call.step), ""),
        peak_share=compute * rate if compute else None,
        memory_share=moved * rate / peaks.memory_bandwidth,
        last_cache_share=moved * rate / peaks.last_cache_bandwidth,
        bound_us=sum(b.seconds for b in bounds) * 1e6,
        bound_by="compute" if compute > memory else "memory",
    )
