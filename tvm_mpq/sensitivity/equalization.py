"""Cross-layer equalisation of a network: factors for the channels of every tensor that can have them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from rich.progress import Progress
from tvm import IRModule

from tvm_mpq.dataset import Dataset
from tvm_mpq.frontend import io_specs, operators
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import FP32
from tvm_mpq.quantization.equalization import ChannelStatistics, equalizing_factors
from tvm_mpq.sensitivity.input_statistics import observed
from tvm_mpq.target import Target
from tvm_mpq.transform.assign_grids import TensorRanges
from tvm_mpq.transform.equalize_channels import equalizable, weights_by_input
from tvm_mpq.transform.operator_body import read_body

_BITS = 8


def equalize(
    mod: IRModule, dataset: Dataset, target: Target, progress: Progress | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """What :class:`~tvm_mpq.transform.equalize_channels.EqualizeChannels` takes, by the inputs of ``dataset``.

    Runs the canonical ``mod`` in fp32 on ``target``, which must be able to run here. Tensors that would gain nothing
    are left out. A channel behind an upper bound (ReLU6) is lifted at most so far that the bound leaves a margin:
    inputs that go beyond all of ``dataset`` by more than that are cut lower than before.
    """
    functions = {o.name: mod[o.global_var_name] for o in operators(mod)}
    readers = equalizable(mod)
    found = {}
    for name, statistics in channel_statistics(mod, list(readers), dataset, target, progress).items():
        rows = [weights_by_input(functions[reader]) for reader in readers[name]]
        factors = equalizing_factors(statistics, rows, _BITS, read_body(functions[name]).high)
        if factors is not None:
            found[name] = factors
    return found


def channel_statistics(
    mod: IRModule, names: list[str], dataset: Dataset, target: Target, progress: Progress | None = None
) -> dict[str, ChannelStatistics]:
    """The statistics of the outputs of the operators ``names``, over ``dataset``."""
    everything = [operator.name for operator in operators(mod)]
    run, _ = observed(mod, PrecisionPlan.uniform(everything, FP32), TensorRanges({}, {}), target)
    places = {name: everything.index(name) for name in names}
    inputs = io_specs(mod)[0]
    batch = inputs[0].shape[0]
    largest: dict[str, npt.NDArray[np.float64]] = {}
    squares: dict[str, npt.NDArray[np.float64]] = {}
    rows: dict[str, int] = dict.fromkeys(names, 0)
    task = None if progress is None else progress.add_task("channels", total=-(-len(dataset) // batch))
    for arrays in dataset.batches(batch):
        results = run([arrays[spec.name] for spec in inputs])
        for name, place in places.items():
            held = results[place].numpy()
            pixels = held.transpose(0, 2, 3, 1) if held.ndim == 4 else held
            flat = pixels.reshape(-1, pixels.shape[-1])
            most, square = np.abs(flat).max(axis=0), np.square(flat).sum(axis=0, dtype=np.float64)
            largest[name] = np.maximum(largest.get(name, 0.0), most)
            squares[name] = squares.get(name, 0.0) + square
            rows[name] += len(flat)
        if progress is not None and task is not None:
            progress.advance(task)
    return {name: ChannelStatistics(largest[name], squares[name] / rows[name]) for name in names}
