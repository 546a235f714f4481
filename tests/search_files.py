"""A small classifier with samples, to search plans for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from frontend_networks import network, weights
from small_networks import kernel, node

from tvm_mpq.compiler import compile_model
from tvm_mpq.cost.modelled import model_costs
from tvm_mpq.cost.table import CostTable
from tvm_mpq.dataset import open_dataset
from tvm_mpq.files import sha256
from tvm_mpq.frontend import import_onnx, io_specs
from tvm_mpq.loss import get_loss
from tvm_mpq.precision import Precision
from tvm_mpq.runtime.evaluate import SampleLosses, evaluate
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session
from tvm_mpq.search.goal import Goal, Limit
from tvm_mpq.search.model import search_model
from tvm_mpq.search.result import SearchResult
from tvm_mpq.search.task import SearchOptions
from tvm_mpq.target import load_target

PRECISIONS = tuple(map(Precision.parse, ("w8a8", "w5a8", "w3a8")))
OPTIONS = SearchOptions(PRECISIONS, evaluations=8, front=2)
SMALL = Goal(max_storage=Limit(0.2, True), max_latency=Limit(10.0, True))
TEACHER, SURE = 1.0, 6.0


def classifier(factor: float) -> onnx.ModelProto:
    """Images [4, 3, 8, 8] → logits [4, 5], ``factor`` times as sure as the labels of ``folder`` deserve."""
    nodes = [
        node("Conv", "x w1 b1", "stem", pads=[1, 1, 1, 1]),
        node("Relu", "stem", "stem_r"),
        node("Conv", "stem_r w2", "dw", group=32, pads=[1, 1, 1, 1]),
        node("Relu", "dw", "dw_r"),
        node("Conv", "dw_r w3 b3", "project"),
        node("Add", "project stem_r", "sum"),
        node("GlobalAveragePool", "sum", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat w4", "logits", transB=1),
    ]
    constants = {
        "w1": kernel(32, 3, 3, 3, 1),
        "b1": weights(32, seed=2, scale=0.3),
        "w2": kernel(32, 1, 3, 3, 3),
        "w3": kernel(32, 32, 1, 1, 4),
        "b3": weights(32, seed=5, scale=0.3),
        "w4": weights(5, 32, seed=6) * np.float32(factor),
    }
    return network(nodes, {"x": [4, 3, 8, 8]}, ["logits"], constants)


def make_files(folder: Path, precisions: tuple[Precision, ...] = PRECISIONS) -> Path:
    """``folder`` with the classifier, three sets of samples with labels drawn from a less sure one, modelled costs."""
    onnx.save(classifier(SURE), folder / "net.onnx")
    teacher = compile_model_of(classifier(TEACHER), folder)
    rng = np.random.default_rng(0)
    for name, count in (("calibration", 48), ("selection", 96), ("evaluation", 64)):
        x = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
        logits = np.concatenate([teacher.run({"x": x[i : i + 4]})[0] for i in range(0, count, 4)])
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        np.savez(folder / f"{name}.npz", x=x, labels=labels)
    np.savez(folder / "unlabelled.npz", x=x)
    model = folder / "net.onnx"
    digest = sha256(model.read_bytes())
    model_costs(import_onnx(model), load_target("x86-64-v3"), precisions, model_sha256=digest).save(
        folder / "costs.json"
    )
    return folder


def compile_model_of(model: onnx.ModelProto, folder: Path) -> Session:
    onnx.save(model, folder / "teacher.onnx")
    return Session(compile_model(folder / "teacher.onnx", precision="fp32", baseline=False), 1)


def run(files: Path, folder: Path, goal: Goal = SMALL, options: SearchOptions = OPTIONS) -> SearchResult:
    return search_model(
        files / "net.onnx",
        files / "calibration.npz",
        selection=files / "selection.npz",
        evaluation=files / "evaluation.npz",
        goal=goal,
        output=folder / "plan.json",
        options=options,
        costs=CostTable.load(files / "costs.json"),
        cache=folder / "cache",
    )


def losses_of(package: Package, model: Path, data: Path) -> SampleLosses:
    opened = open_dataset(data, io_specs(import_onnx(model))[0])
    return evaluate(Session(package, 1), None, opened, get_loss("cross-entropy"))[0]
