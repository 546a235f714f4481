"""What a search chose besides precisions, so that its plan compiles to the very network that it measured.

A plan file ``plan.json`` names it as ``"weights": {"file": "plan.0a1b2c3d.weights.npz", "sha256": "…"}``, beside
itself. The file is an .npz without pickles: rounded weights and biases of each operator, the ranges of all tensors,
scales.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import IRModule

from tvm_mpq.dataset import Dataset
from tvm_mpq.errors import MpqError, MpqWarning
from tvm_mpq.files import sha256, write_beside
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.quantization.weights_file import UNREADABLE, pack_weights, read_npz, unpack_weights, write_npz
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.equalize_channels import equalize_channels
from tvm_mpq.transform.scale_operators import scale_operators

SCHEMA_VERSION = 2
_ENDING = ".weights.npz"


@dataclass(frozen=True)
class PlanWeights:
    """``weights`` and changes of ``biases`` (float32 [O]) by operator; ``ranges`` of tensors.

    ``scales`` are the factors of operators whose outputs the loss wanted larger or smaller
    (:class:`~tvm_mpq.transform.scale_operators.ScaleOperators`), ``factors`` (float32 [O]) those of channels
    (:class:`~tvm_mpq.transform.equalize_channels.EqualizeChannels`); weights, biases and ranges are of the network
    after both. ``model_sha256`` is the network's, ``origin`` how the ranges came about: observer, samples, seed and
    hash.
    """

    model_sha256: str
    ranges: TensorRanges
    weights: Mapping[str, QuantizedWeights] = field(default_factory=dict)
    biases: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    factors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def check_model(self, model: Path) -> None:
        """Raises MpqError unless ``model`` is the network that these weights were chosen for."""
        if self.model_sha256 != sha256(model.read_bytes()):
            raise MpqError(f"the plan's weights are of another network than {model}: search again")

    def applied(
        self, mod: IRModule, plan: PrecisionPlan
    ) -> tuple[IRModule, dict[str, QuantizedWeights], dict[str, npt.NDArray[np.float32]]]:
        """The canonical module scaled and equalized, and the weights and biases that ``plan`` has a use for."""
        rounded = self.fitting(plan)
        biases = {name: change for name, change in self.biases.items() if name in rounded}
        return equalize_channels(scale_operators(mod, self.scales), self.factors), rounded, biases

    def fitting(self, plan: PrecisionPlan) -> dict[str, QuantizedWeights]:
        """The weights that have the bits and groups of ``plan``; an MpqWarning names operators edited since."""
        fitting, other = {}, []
        for name, quantized in self.weights.items():
            precision = plan[name]
            if precision.is_float:
                continue
            if (quantized.bits, quantized.group) == (precision.weight_bits, precision.group):
                fitting[name] = quantized
            else:
                other.append(name)
        if other:
            warnings.warn(
                f"{len(other)} operators have another precision than the plan's weights were rounded for, and are "
                f"rounded to nearest: {', '.join(other)}",
                MpqWarning,
                stacklevel=2,
            )
        return fitting

    def to_bytes(self) -> bytes:
        """The content of the .npz."""
        arrays, operators = pack_weights(self.weights, self.biases)
        for index, factor in enumerate(self.factors.values()):
            arrays[f"factor.{index}"] = np.asarray(factor, np.float32)
        head = {
            "schema_version": SCHEMA_VERSION,
            "model_sha256": self.model_sha256,
            "inputs": {k: list(v) for k, v in self.ranges.inputs.items()},
            "outputs": {k: list(v) for k, v in self.ranges.operators.items()},
            "scales": dict(self.scales),
            "factors": list(self.factors),
            "origin": dict(self.origin),
            "operators": operators,
        }
        return write_npz(arrays, head)

    @classmethod
    def from_bytes(cls, content: bytes, source: str) -> PlanWeights:
        """Read what :meth:`to_bytes` wrote; raises MpqError that names ``source``."""
        try:
            arrays, head = read_npz(content)
            if head["schema_version"] != SCHEMA_VERSION:
                raise ValueError(
                    f"schema version {head['schema_version']!r}; this is {SCHEMA_VERSION}, search again"
                )
            weights, biases = unpack_weights(arrays, head["operators"])
            ranges = TensorRanges(
                {k: (float(v[0]), float(v[1])) for k, v in head["inputs"].items()},
                {k: (float(v[0]), float(v[1])) for k, v in head["outputs"].items()},
            )
            scales = {str(k): float(v) for k, v in head["scales"].items()}
            factors = {
                str(name): np.asarray(arrays[f"factor.{index}"], np.float32)
                for index, name in enumerate(head["factors"])
            }
            return cls(head["model_sha256"], ranges, weights, biases, scales, factors, dict(head["origin"]))
        except UNREADABLE as error:
            raise MpqError(f"{source} are not a plan's weights: {' '.join(str(error).split())}") from None


def origin_of(observer: str, samples: Dataset, seed: int) -> dict[str, Any]:
    """How ranges came about, as :class:`PlanWeights` holds it."""
    return {"observer": observer, "samples": len(samples), "seed": seed, "sha256": samples.content_hash()}


def beside_plan(plan: Path, ending: str) -> Path:
    """A file that belongs to the plan file ``plan``: its name without ``.json``, and ``ending``."""
    return plan.with_name(plan.name.removesuffix(".json") + ending)


def save_plan(path: Path, plan: PrecisionPlan, weights: PlanWeights) -> None:
    """Write the plan and beside it its weights, each to a temporary file first and then renamed.

    The weights' file is named after its content, and those of an earlier plan of this name go last: at any moment the
    plan on disk is whole.
    """
    content = weights.to_bytes()
    digest = sha256(content)
    beside = beside_plan(path, f".{digest[:8]}{_ENDING}")
    write_beside(beside, content)
    write_beside(path, plan.to_json({"weights": {"file": beside.name, "sha256": digest}}).encode())
    named = re.compile(re.escape(beside_plan(path, "").name) + r"\.[0-9a-f]{8}" + re.escape(_ENDING))
    for other in path.parent.iterdir():
        if other != beside and named.fullmatch(other.name):
            other.unlink(missing_ok=True)


def load_plan(path: str | Path) -> tuple[PrecisionPlan, PlanWeights | None]:
    """A plan file and the weights that it names, if it does.

    Raises MpqError where either cannot be read, and where the weights are not those that the plan was saved with.
    """
    file = Path(path)
    plan = PrecisionPlan.load(file)
    reference = json.loads(file.read_text(encoding="utf-8")).get("weights")
    if reference is None:
        return plan, None
    try:
        name, digest = str(reference["file"]), str(reference["sha256"])
    except (TypeError, KeyError):
        raise MpqError(f'{path}: "weights" needs "file" and "sha256"') from None
    if Path(name).name != name or "\0" in name:
        raise MpqError(f"{path}: the weights' file must be beside the plan, not {name!r}")
    beside = file.parent / name
    try:
        content = beside.read_bytes()
    except OSError as error:
        raise MpqError(
            f"cannot read {beside}, the weights of {path}: {error.strerror}; copy both files, or remove the plan's "
            '"weights" to round to nearest'
        ) from None
    if sha256(content) != digest:
        raise MpqError(f"{beside} is damaged or of another plan: its SHA-256 is not what {path} says")
    return plan, PlanWeights.from_bytes(content, str(beside))
