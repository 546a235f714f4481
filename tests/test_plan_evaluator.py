"""The evaluator gives the losses of the packages themselves, and builds once for plans of one structure."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_mpq.calibration import calibrate
from tvm_mpq.compiler import compile_model
from tvm_mpq.dataset import open_dataset
from tvm_mpq.frontend import import_onnx, io_specs, operators
from tvm_mpq.loss import get_loss
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import Precision
from tvm_mpq.runtime.evaluate import evaluate
from tvm_mpq.runtime.session import Session
from tvm_mpq.sample import calibration_arrays, model_path
from tvm_mpq.search.candidates import Rounding
from tvm_mpq.search.evaluator import PlanEvaluator
from tvm_mpq.target import host_target

SAMPLES = 48


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> PlanEvaluator:
    mod = import_onnx(model_path())
    images, labels = calibration_arrays()
    file = tmp_path_factory.mktemp("data") / "some.npz"
    np.savez(file, image=images[:SAMPLES], labels=labels[:SAMPLES])
    data = open_dataset(file, io_specs(mod)[0])
    ranges = calibrate(mod, data, "minmax", host_target())
    return PlanEvaluator(mod, ranges, data, get_loss("cross-entropy"))


def _plan(evaluator: PlanEvaluator, *precisions: str) -> PrecisionPlan:
    names = [operator.name for operator in operators(import_onnx(model_path()))]
    cycle = [Precision.parse(p) for p in precisions]
    return PrecisionPlan({name: cycle[i % len(cycle)] for i, name in enumerate(names)})


@pytest.mark.parametrize(
    "precisions", [("w7a8", "w3a8", "w4g32a8", "w6a8", "w4a8", "w8a8"), ("w8a8", "w5a8", "fp32")]
)
def test_losses_are_those_of_the_package(evaluator: PlanEvaluator, precisions: tuple[str, ...]) -> None:
    plan = _plan(evaluator, *precisions)
    found = evaluator.losses(plan)
    package = compile_model(
        model_path(),
        calibration=evaluator.data,
        samples=SAMPLES,
        plan=plan,
        rounding=Rounding("nearest", correct_biases=False),
        baseline=False,
    )
    packaged, _ = evaluate(Session(package, 1), None, evaluator.data, get_loss("cross-entropy"))
    np.testing.assert_array_equal(found.losses, packaged.losses)
    assert found.correct is not None
    assert packaged.correct is not None
    np.testing.assert_array_equal(found.correct, packaged.correct)


def test_plans_of_one_structure_share_a_build(evaluator: PlanEvaluator) -> None:
    evaluator.losses(_plan(evaluator, "w8a8"))
    built = evaluator.builds
    evaluator.losses(_plan(evaluator, "w5a8", "w2a8"))
    assert evaluator.builds == built
