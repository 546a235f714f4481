"""The whole road: an ONNX file, samples and a target in, a package out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from tvm import IRModule

from tvm_mpq.build import build, constant_bytes
from tvm_mpq.cost.calls import kernel_calls
from tvm_mpq.cuda.nvcc import working_nvcc
from tvm_mpq.dataset import Dataset, Preprocess
from tvm_mpq.errors import MpqError, MpqWarning
from tvm_mpq.files import sha256
from tvm_mpq.fitting import GridOptions, default_rounding, fit_weights
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import gives_probabilities
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.plan_weights import PlanWeights
from tvm_mpq.precision import FP32, Precision
from tvm_mpq.runtime.metadata import CalibrationInfo, OperatorRecord, Storage
from tvm_mpq.runtime.package import Package, baseline_path
from tvm_mpq.search.candidates import Rounding
from tvm_mpq.target import Target, load_target
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.pipeline import Pipeline
from tvm_mpq.tuning.lookup import TunedTiles, tuned_tiles


def compile_model(
    model: str | Path,
    *,
    target: str | Target = "host",
    calibration: str | Path | Dataset | None = None,
    plan: PrecisionPlan | None = None,
    weights: PlanWeights | None = None,
    precision: str = "w8a8",
    observer: str = "minmax",
    equalize: bool = False,
    rounding: Rounding | None = None,
    loss: str = "cross-entropy",
    probabilities: bool = False,
    samples: int = 256,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    output: str | Path | None = None,
    dump_ir: str | Path | None = None,
    preprocess: Preprocess | None = None,
    baseline: bool = True,
    tuning_logs: str | Path | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Package:
    """Compile the ONNX file ``model``, every operator at ``plan``'s precision (or all at ``precision``).

    ``calibration`` (a path or an open data set, of which ``samples`` are used) is needed as soon as one operator has
    8-bit activations, unless there are ``weights``, which a search chose with the plan (``load_plan``). It finds the
    ranges, by ``loss`` where that is the ``observer``; with ``equalize`` the channels' factors too; and it rounds the
    weights by ``rounding``. Where that is None they are rounded by their inputs' second moments if some have fewer
    than 8 bits and there are samples, else to nearest without changes of biases. With ``output`` the package is written
    there and, with ``baseline``, the fp32 package beside it as ``<output>.fp32.tar``.
    ``dump_ir`` is a folder that gets the module after each pass. Kernels get the tiles that the logs under
    ``tuning_logs`` (by default those that come with tvm_mpq) know for ``threads`` threads; what was left out of them is
    an MpqWarning. Raises MpqError for everything that a user can mend.
    """
    machine = target if isinstance(target, Target) else load_target(target)
    if machine.gpu is not None:
        working_nvcc()  # What is missing is said before the network is calibrated.
    tiles = tuned_tiles(machine, tuning_logs, threads)
    mod = import_onnx(model, input_shapes)
    names = [operator.name for operator in operators(mod)]
    chosen = PrecisionPlan.uniform(names, Precision.parse(precision)) if plan is None else plan
    chosen.check(names)
    machine.require(chosen.operators.values())

    information, digest = None, None
    digest_of_model = sha256(Path(model).read_bytes())
    if weights is None and rounding is None and calibration is not None:
        rounding = default_rounding(chosen)
    if weights is not None:
        weights.check_model(Path(model))
        if equalize or rounding is not None:
            raise MpqError("the plan comes with weights of its own: leave out --rounding and --equalize")
    elif equalize or rounding is not None or any(p.integer_activations for p in chosen.operators.values()):
        dataset = _calibration_set(mod, calibration, preprocess or Preprocess()).take(samples)
        probabilities = probabilities or gives_probabilities(operators(mod))
        grids = GridOptions(observer, equalize, rounding, loss, probabilities)
        weights = fit_weights(mod, digest_of_model, chosen, dataset, grids, seed, progress)
    if weights is not None:
        digest = str(weights.origin["sha256"])
        information = CalibrationInfo(
            str(weights.origin["observer"]), int(weights.origin["samples"]), int(weights.origin["seed"])
        )

    job = _Job(mod, Path(model).stem, digest_of_model, machine, tiles)
    package = job.package(chosen, weights, information, digest, None if dump_ir is None else Path(dump_ir))
    all_float = all(value == FP32 for value in chosen.operators.values())
    if baseline and output is not None and not all_float:
        reference = job.package(PrecisionPlan.uniform(names, FP32), None, None, None, None)
        path = baseline_path(output)
        content = reference.to_bytes()
        package = package.with_baseline(path.name, content)
        reference.save(path)
    if output is not None:
        package.save(output)
    for note in tiles.notes:
        warnings.warn(note, MpqWarning, stacklevel=2)
    return package


@dataclass(frozen=True)
class _Job:
    """One network on one target, to be compiled under several plans."""

    mod: IRModule
    name: str
    model_sha256: str
    target: Target
    tiles: TunedTiles

    def package(
        self,
        plan: PrecisionPlan,
        weights: PlanWeights | None,
        calibration: CalibrationInfo | None,
        calibration_sha256: str | None,
        dump_ir: Path | None,
    ) -> Package:
        mod, ranges, rounded, biases = self.mod, TensorRanges({}, {}), None, None
        if weights is not None:
            ranges = weights.ranges
            mod, rounded, biases = weights.applied(mod, plan)
        pipeline = Pipeline(
            plan,
            ranges,
            self.target.instruction,
            dump_ir,
            weights=rounded,
            biases=biases,
            tiles=self.tiles,
        )
        annotated = pipeline.annotate(mod)
        lowered = pipeline.lower(annotated)
        built = build(lowered, self.target)
        inputs, outputs = io_specs(self.mod)
        return Package.create(
            name=self.name,
            inputs=inputs,
            outputs=outputs,
            target=self.target,
            plan=plan,
            library=built.library(),
            weights=built.weights,
            model_sha256=self.model_sha256,
            operators=[_record(function) for _, function, _ in attr.calls(annotated)],
            storage=Storage(
                weights=built.file_weights,
                weights_fp32=constant_bytes(self.mod),
                weights_resident=built.resident_weights,
                resident=built.resident_weights + built.activations,
            ),
            calls=kernel_calls(lowered),
            calibration=calibration,
            calibration_sha256=calibration_sha256,
        )


def _record(function: object) -> OperatorRecord:
    asked = attr.text(function, attr.ASKED)
    return OperatorRecord(
        name=attr.text(function, attr.OPERATOR),
        kind=attr.text(function, attr.KIND),
        asked=asked,
        chosen=asked,
        executed=attr.text(function, attr.PRECISION),
        reason=attr.text(function, attr.REASON),
    )


def _calibration_set(
    mod: IRModule, calibration: str | Path | Dataset | None, preprocess: Preprocess
) -> Dataset:
    if calibration is None:
        raise MpqError(
            "8-bit activations need samples to find their ranges: give --calibration DATA, or --precision fp32"
        )
    if isinstance(calibration, Dataset):
        return calibration
    return preprocess.open(calibration, io_specs(mod)[0])
