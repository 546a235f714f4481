"""One measured tile as one line of JSON: what tuning logs are made of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from tvm_mpq.kernels.amx import AmxTile
from tvm_mpq.kernels.cuda.tile import CudaTile
from tvm_mpq.kernels.depthwise import DepthwiseTile
from tvm_mpq.kernels.packed_rows import PackedRowsTile
from tvm_mpq.kernels.pair_depthwise_tile import PairDepthwiseTile
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.kernels.tiles import ConvolutionTile
from tvm_mpq.kernels.weight_only import WeightOnlyTile
from tvm_mpq.kernels.winograd import WinogradTile

TEMPLATE_VERSIONS = {
    "amx": 1,
    "convolution": 1,
    "cuda": 1,
    "depthwise": 1,
    "packed_rows": 1,
    "pair_depthwise": 1,
    "weight_only": 2,
    "winograd": 1,
}
"""Raised with a change of a template that changes which tiles are fast; records of older versions are ignored."""
_TILES: dict[str, type[Tile]] = {
    "amx": AmxTile,
    "convolution": ConvolutionTile,
    "cuda": CudaTile,
    "depthwise": DepthwiseTile,
    "packed_rows": PackedRowsTile,
    "pair_depthwise": PairDepthwiseTile,
    "weight_only": WeightOnlyTile,
    "winograd": WinogradTile,
}


@dataclass(frozen=True)
class TuningRecord:
    """``tile`` of ``spec`` (a :attr:`KernelSpec.key`) was measured with ``threads`` threads on the processor ``cpu``.

    Of a GPU's kernels ``cpu`` is the GPU. ``seconds`` is the median of one call, None where the tile failed;
    ``default_seconds`` the default tile's in the same interleaved batch. ``stage`` is ``search``, or ``final`` for the
    choice of a finished search, measured again against the default: the only stage that compilation reads. ``trials``
    is the number the search was given.
    """

    spec: KernelSpec
    tile: Tile
    threads: int
    seconds: float | None
    default_seconds: float
    stage: str
    trials: int
    cpu: str
    seed: int
    versions: dict[str, str]

    @property
    def speedup(self) -> float:
        """The default's seconds over this tile's; 0 where it failed."""
        return self.default_seconds / self.seconds if self.seconds else 0.0

    def to_line(self) -> str:
        """The record as a line of JSON, with its end."""
        raw = asdict(self)
        kind = tile_kind(self.tile)
        raw["spec"] = json.loads(self.spec.to_json())
        raw["spec"]["out"] = {"dtype": self.spec.out.dtype}  # a key has no bounds, and JSON no infinity
        for name in ("seconds", "default_seconds"):
            raw[name] = None if raw[name] is None else float(f"{raw[name]:.4g}")
        raw["tile"] = {"kind": kind, **asdict(self.tile)}
        return (
            json.dumps({"template": TEMPLATE_VERSIONS[kind], **raw}, sort_keys=True, allow_nan=False) + "\n"
        )

    @classmethod
    def from_line(cls, line: str) -> TuningRecord | None:
        """Read what :meth:`to_line` wrote; None for another version of its template, ValueError for anything else."""
        try:
            raw: dict[str, Any] = json.loads(line)
            version, tile = raw.pop("template"), raw.pop("tile")
            kind = tile.pop("kind")
            if version != TEMPLATE_VERSIONS[kind]:
                return None
            spec = KernelSpec.from_json(json.dumps(raw.pop("spec")))
            return cls(spec=spec, tile=_TILES[kind](**tile), **raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a tuning record: {error}") from None


def tile_kind(tile: Tile) -> str:
    """The template that ``tile`` is of."""
    return next(kind for kind, cls in _TILES.items() if isinstance(tile, cls))


def tile_to_json(tile: Tile) -> str:
    """The tile with its template as JSON text."""
    return json.dumps({"kind": tile_kind(tile), **asdict(tile)})


def tile_from_json(text: str) -> Tile:
    """Read what :func:`tile_to_json` wrote."""
    raw = json.loads(text)
    return _TILES[raw.pop("kind")](**raw)
