"""What each operator's weights meet in the quantized network, and would meet in fp32: for rounding them well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress
from tvm import IRModule, cpu, relax
from tvm.runtime import tensor

from tvm_mpq.build import build
from tvm_mpq.dataset import Dataset
from tvm_mpq.frontend import io_specs
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.quantization.covariance import Covariance, InputStatistics, Sampler
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.patches import Window
from tvm_mpq.runtime.threads import available_threads, run_with_threads
from tvm_mpq.target import Target
from tvm_mpq.transform import attributes as attr
from tvm_mpq.transform.assign_grids import ACCUMULATING_KINDS, TensorRanges
from tvm_mpq.transform.operator_body import read_body, shape_of
from tvm_mpq.transform.pipeline import Pipeline

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    """Where an operator with weights reads: result ``index`` of the observed network, or input ``index``.

    ``shape`` is ONNX's; ``grid`` is that of the tensor where the operator reads it in 8 bits.
    """

    is_input: bool
    index: int
    shape: tuple[int, ...]
    grid: Grid | None
    window: Window

    def values(self, inputs: list[Array], results: list[Any], reference: bool) -> Array:
        """The tensor as the operator meets it: real float32 [N, H, W, C], without a grid for the ``reference``."""
        held = inputs[self.index] if self.is_input else results[self.index].numpy()
        if len(self.shape) == 4:
            n, c, h, w = self.shape
            pixels = held.reshape(n, h, w, c) if held.ndim == 2 else held.transpose(0, 2, 3, 1)
        else:
            pixels = held.reshape(-1, 1, 1, self.shape[-1])
        if reference or self.grid is None:
            return np.asarray(pixels, np.float32)
        codes = pixels if pixels.dtype == np.uint8 else self.grid.quantize(pixels)
        return self.grid.dequantize(codes)


def sources(annotated: IRModule) -> dict[str, Source]:
    """Where each operator with weights reads, by operator name, in an annotated module."""
    main = annotated["main"]
    input_grids = attr.input_grids(main)
    names = attr.names(main, attr.INPUTS)
    places: dict[relax.Var, tuple[bool, int]] = {v: (True, i) for i, v in enumerate(main.params)}
    grids = {v: input_grids.get(name) for v, name in zip(main.params, names, strict=True)}
    found = {}
    for index, (variable, function, call) in enumerate(attr.calls(annotated)):
        places[variable] = (False, index)
        grids[variable] = None
        if attr.text(function, attr.SCALE):
            grids[variable] = Grid(float(function.attrs[attr.SCALE]), int(function.attrs[attr.ZERO_POINT]))
        if attr.text(function, attr.KIND) in ACCUMULATING_KINDS:
            x = call.args[0]
            integer = attr.text(function, attr.PRECISION) != str(FP32)
            grid = grids[x] if integer else None
            found[attr.text(function, attr.OPERATOR)] = Source(
                *places[x], shape_of(x), grid, window(function)
            )
    return found


def input_statistics(
    mod: IRModule,
    plan: PrecisionPlan,
    ranges: TensorRanges,
    dataset: Dataset,
    target: Target,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
    with_reference: bool = True,
) -> dict[str, InputStatistics]:
    """The input moments of the operators with weights (or of ``only`` those named) over ``dataset``.

    Runs the canonical ``mod`` under ``plan`` and in fp32 side by side with the kernels of ``target``, which must be
    able to run here; a batch of both is in memory at a time. Without ``with_reference`` fp32 is left out, and its
    moments are taken to be those under ``plan``. Samples are taken in a random order, always the same one, and no more
    of an operator's positions than it needs. The last, incomplete batch is left out, unless there is no other.
    """
    inputs, _ = io_specs(mod)
    batch = inputs[0].shape[0]
    quantized, annotated = observed(mod, plan, ranges, target)
    reference = None
    if with_reference:
        reference, _ = observed(mod, PrecisionPlan.uniform(plan, FP32), ranges, target)
    wanted = sources(annotated)
    if only is not None:
        wanted = {name: wanted[name] for name in only}
    totals = {name: Covariance() for name in wanted}
    count = max(1, len(dataset) // batch)
    task = None if progress is None else progress.add_task("Input statistics", total=count)
    # Data is often sorted by class, and operators that have seen enough leave out the rest.
    shuffled = dataset.subset(np.random.default_rng(0).permutation(len(dataset)))
    for index, arrays in enumerate(shuffled.batches(batch)):
        if index == count or all(total.plenty for total in totals.values()):
            break
        given = [arrays[spec.name] for spec in inputs]
        met = quantized(given)
        meant = None if reference is None else reference(given)
        for name, source in wanted.items():
            if totals[name].plenty:
                continue
            sample = Sampler(source.window)
            seen = sample(source.values(given, met, False), index)
            exact = None if meant is None else sample(source.values(given, meant, True), index)
            totals[name].update(seen, exact)
        if progress is not None and task is not None:
            progress.advance(task)
    return {name: total.statistics() for name, total in totals.items()}


def observed(
    mod: IRModule, plan: PrecisionPlan, ranges: TensorRanges, target: Target
) -> tuple[Callable[[list[Array]], list[Any]], IRModule]:
    """The network under ``plan`` as a function from its inputs to every operator's result, and the annotated module."""
    pipeline = Pipeline(plan, ranges, target.instruction, observe=True, any_codes=True)
    annotated = pipeline.annotate(mod)
    main = relax.VirtualMachine(build(pipeline.lower(annotated), target).executable, cpu())["main"]
    threads = available_threads()

    def run(arrays: list[Array]) -> list[Any]:
        given = [tensor(array) for array in arrays]
        return run_with_threads(threads, lambda: list(main(*given)))

    return run, annotated


def window(function: relax.Function) -> Window:
    """What an operator with weights sums over."""
    if attr.text(function, attr.KIND) == "matmul":
        return Window()
    body = read_body(function)
    assert body.weight is not None
    attributes = body.attributes
    top, left, bottom, right = (int(value) for value in attributes.padding)
    return Window(
        kernel=(body.weight.shape[2], body.weight.shape[3]),
        stride=(int(attributes.strides[0]), int(attributes.strides[1])),
        padding=(top, left, bottom, right),
        dilation=(int(attributes.dilation[0]), int(attributes.dilation[1])),
        groups=int(attributes.groups),
    )
