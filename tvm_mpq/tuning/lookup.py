"""The tuned tiles that a compilation uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tvm_mpq.cpu import cpu_name
from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import driver_device
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.target import HOST_CUDA, Target
from tvm_mpq.tuning.log import TuningLog, log_folder, shipped_logs


@dataclass
class TunedTiles:
    """A lookup of tiles by key (see :data:`tvm_mpq.kernels.spec.TileLookup`).

    A tile that the templates of today cannot make is left out; ``notes`` say so.
    """

    tiles: Mapping[KernelSpec, Tile]
    notes: list[str] = field(default_factory=list)
    _checked: dict[KernelSpec, Tile | None] = field(default_factory=dict)

    def __call__(self, key: KernelSpec) -> Tile | None:
        """The tile to use for ``key``, or None."""
        if key not in self._checked:
            tile = self.tiles.get(key)
            if tile is not None and tile not in key.space():
                self.notes.append(f"{key.name}: the logged {tile} is no tile of its kernel and left out")
                tile = None
            self._checked[key] = tile
        return self._checked[key]


def tuned_tiles(target: Target, logs: str | Path | None, threads: int = 1) -> TunedTiles:
    """What the logs under ``logs`` (those that come with tvm_mpq for None) know of ``target`` with ``threads`` threads.

    A GPU's kernels do not depend on those. On this machine's own target records of its processor, or GPU, go first.
    Raises MpqError for a folder that is not there.
    """
    root = shipped_logs() if logs is None else Path(logs)
    if not root.is_dir():
        raise MpqError(f"there is no folder {root} of tuning logs: 'tvm-mpq tune' makes one")
    log = TuningLog.read(log_folder(root, target))
    cpu = cpu_name() if target.name == "host" else None
    if target.gpu is not None:
        gpu = driver_device() if target.name == HOST_CUDA else None
        threads, cpu = 1, None if gpu is None else gpu.name
    return TunedTiles(log.best(threads, cpu), list(log.notes))
