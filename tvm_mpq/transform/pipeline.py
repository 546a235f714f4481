"""Every pass from the canonical module to the executable, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm import IRModule, relax

from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import CUDA
from tvm_mpq.kernels.spec import TileLookup, default_tiles
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.quantization.weights import QuantizedWeights
from tvm_mpq.transform.annotate import AnnotatePrecision
from tvm_mpq.transform.assign_grids import AssignGrids, TensorRanges
from tvm_mpq.transform.change_biases import Biases, ChangeBiases
from tvm_mpq.transform.lift_weights import LiftWeights
from tvm_mpq.transform.lower_operators import LowerOperators
from tvm_mpq.transform.plain_names import PlainNames
from tvm_mpq.transform.schedule_kernels import ScheduleKernels

# A pass runs inside TVM, which would otherwise hand its errors back as RuntimeError.
tvm_ffi.register_error("MpqError", MpqError)


@dataclass(frozen=True)
class Pipeline:
    """The passes for one plan, one set of ranges and one instruction set.

    ``dump`` is a folder that gets the module after each pass. ``observe`` makes every operator's output a result.
    ``weights`` gives operators integer weights of their plan's precision, instead of rounding to nearest; ``biases``
    are added to those of the operators they name.
    ``any_codes`` takes kernels for 8-bit codes of any kind, which compute the same whatever bits the codes have, and
    keeps all weights as constants of their 8-bit codes.
    ``tiles`` knows the tuned tiles; kernels that it knows none for get the default.
    """

    plan: PrecisionPlan
    ranges: TensorRanges
    instruction: str
    dump: Path | None = None
    observe: bool = False
    weights: Mapping[str, QuantizedWeights] | None = None
    biases: Biases | None = None
    any_codes: bool = False
    tiles: TileLookup = default_tiles

    @property
    def gpu(self) -> bool:
        """Whether the kernels are for one."""
        return self.instruction in CUDA

    def annotate(self, mod: IRModule) -> IRModule:
        """Canonical module → every operator carries its bit-width and every 8-bit tensor its grid."""
        corrections = [ChangeBiases(self.biases)] if self.biases else []
        passes = [*corrections, AnnotatePrecision(self.plan, self.gpu), AssignGrids(self.ranges)]
        return self._run(mod, passes, 1 - len(corrections))

    def lower(self, mod: IRModule, *between: tvm.transform.Pass) -> IRModule:
        """Annotated module → scheduled NHWC kernels, through the passes ``between`` once there are kernels."""
        passes = [
            LowerOperators(self.instruction, self.observe, self.weights, self.any_codes, self.tiles),
            LiftWeights(),
            *between,
            *([PlainNames()] if self.gpu else []),
            relax.transform.LegalizeOps(),
            ScheduleKernels(self.tiles, self.gpu),
        ]
        return self._run(mod, passes, 3)

    def _run(self, mod: IRModule, passes: Sequence[tvm.transform.Pass], first: int) -> IRModule:
        for index, step in enumerate(passes, first):
            mod = step(mod)
            if self.dump is not None:
                _write(self.dump / f"{index}_{step.info.name}.py", mod)
        return mod


def build_passes() -> tvm.transform.Pass:
    """Scheduled module → bytecode with memory planned once; TVM's own passes without its schedules."""
    return tvm.transform.Sequential(
        [
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )


def _write(path: Path, mod: IRModule) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mod.script(show_meta=False), encoding="utf-8")
    except OSError as error:
        raise MpqError(f"cannot write the IR to {path}: {error.strerror}") from None
