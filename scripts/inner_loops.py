"""How close the inner loops of kernels come to what a core can multiply at most, by llvm-mca: it need not be here.

    python scripts/inner_loops.py arm [--llvm-mca llvm-mca-22] [--json FILE]
    python scripts/inner_loops.py x86 [--network resnet18]

The default tile's innermost loop, cycles of one pass as llvm-mca simulates it, and the least cycles that its
multiplications take on the units that the model gives the processor. ``arm``: two shapes at five precisions, the direct
kernels; ``x86``: the 8-bit convolutions of a network, and their mean weighted by operations. llvm-mca (Debian's package
llvm-22) assumes that all loads hit the first-level cache. It has no models of Cortex-A72 and A76: those of A57 and of
Neoverse N1, which is A76 for servers, stand for them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import networks
import onnx
import tvm
from loops.assembly import X86, Arm, Assembly, innermost, multiplications

from tvm_mpq.frontend import import_onnx, operators
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.plan import PrecisionPlan
from tvm_mpq.precision import Precision
from tvm_mpq.target import load_target
from tvm_mpq.transform.small_buffers import compile_kernels
from tvm_mpq.tuning.workloads import workloads

PROCESSORS = {
    "arm": {
        "cortex-a55": "cortex-a55",
        "raspberry-pi-4": "cortex-a57",
        "raspberry-pi-5": "neoverse-n1",
        "graviton3": "neoverse-v1",
    },
    "x86": {
        "cascadelake": "icelake-server",
        "alderlake": "alderlake",
        "x86-64-v4": "skylake-avx512",
        "x86-64-v3": "znver3",
    },
}
"""The model that stands for each target."""
ASSEMBLY: dict[str, Assembly] = {"arm": Arm(), "x86": X86()}
SHAPES = {
    "1×1": ConvolutionShape(1, 14, 14, 128, 96),
    "3×3": ConvolutionShape(1, 28, 28, 64, 96, (3, 3), (1, 1), (1, 1, 1, 1)),
}
PRECISIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "w8a8": ("uint8", {}),
    "w4a8": ("uint8", {"weight_bits": 4}),
    "w4g32a8": ("uint8", {"weight_bits": 4, "weight_group": 32}),
    "fp32": ("float32", {}),
    "fp16": ("float32", {"weight_dtype": "float16"}),
}
ITERATIONS = 200


class Loop(NamedTuple):
    """One kernel's; ``calls`` of it in the network; cycles are of one pass."""

    target: str
    precision: str
    kernel: str
    calls: int
    macs: int
    tile: str
    instructions: int
    multiplications: int
    products: int
    cycles: float
    least: float

    @property
    def share(self) -> float:
        """Of the peak."""
        return self.least / self.cycles


def assembly_of(spec: KernelSpec, target: str) -> str:
    function = spec.schedule().with_attr("global_symbol", "main")
    built = compile_kernels(tvm.IRModule({"main": function}), load_target(target).tvm_target())
    return str(built.mod.inspect_source("asm"))


def simulated(lines: list[str], command: list[str]) -> float:
    """Cycles of a pass."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loop.s"
        file.write_text("\n".join(lines) + "\n")
        said = subprocess.run([*command, str(file)], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", said)
    assert found is not None
    return int(found[1]) / ITERATIONS


def measure(spec: KernelSpec, target: str, family: str, mca: str, name: str, calls: int = 1) -> Loop:
    assembly = ASSEMBLY[family]
    command = [mca, *assembly.options, f"-mcpu={PROCESSORS[family][target]}", f"-iterations={ITERATIONS}"]
    tile = spec.default_tile()
    loop = innermost(assembly_of(spec, target), assembly)
    made = multiplications(loop, assembly)
    # The cost of the multiplications alone, in the same model.
    least = simulated([assembly.alone(line, index) for index, line in enumerate(made)], command)
    return Loop(
        target,
        spec.precision,
        name,
        calls,
        spec.shape.rows * spec.shape.reduction(1) * spec.shape.out_channels,
        f"{tile.rows} × {spec.row.lanes * tile.blocks}",  # type: ignore[union-attr]
        len(loop),
        len(made),
        assembly.products(made),
        simulated(loop, command),
        least,
    )


def arm_loops(mca: str) -> Iterator[Loop]:
    """Of two shapes at every precision."""
    for target in PROCESSORS["arm"]:
        for dtype, options in PRECISIONS.values():
            for name, shape in SHAPES.items():
                instruction = load_target(target).instruction
                spec = KernelSpec("conv2d", shape, dtype, Output(dtype), instruction, **options)
                yield measure(spec, target, "arm", mca, name)


def x86_loops(network: str, mca: str) -> Iterator[Loop]:
    """Of a network's 8-bit convolutions, where they are direct."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{network}.onnx"
        onnx.save(networks.load_network(network), source)
        mod = import_onnx(source)
    plan = PrecisionPlan.uniform([operator.name for operator in operators(mod)], Precision.parse("w8a8"))
    for target in PROCESSORS["x86"]:
        for spec, calls in workloads(mod, plan, load_target(target)).items():
            if spec.family == "conv2d":
                yield measure(spec, target, "x86", mca, spec.name.removeprefix("conv2d_w8a8_"), calls)


def _print(rows: list[Loop], weighted: bool) -> None:
    print(
        "| target | precision | kernel | tile | instructions | products | cycles | products a cycle | of the peak |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        rate = row.products / row.cycles
        print(
            f"| {row.target} | {row.precision} | {row.kernel} | {row.tile} | {row.instructions} | {row.products} "
            f"| {row.cycles:.1f} | {rate:.1f} | {100 * row.share:.0f} % |"
        )
    for target in dict.fromkeys(row.target for row in rows) if weighted else ():
        mine = [row for row in rows if row.target == target]
        work = [row.calls * row.macs for row in mine]
        time = [each / row.share for each, row in zip(work, mine, strict=True)]
        print(f"{target}: {100 * sum(work) / sum(time):.1f} % of the peak, weighted by operations")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("family", choices=PROCESSORS)
    parser.add_argument("--network", default="resnet18", help="x86: whose convolutions")
    parser.add_argument("--llvm-mca", default="llvm-mca", help="the program; older ones lack models")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    find = arm_loops if options.family == "arm" else partial(x86_loops, options.network)
    rows = list(find(options.llvm_mca))
    _print(rows, options.family == "x86")
    if options.json:
        options.json.write_text(json.dumps([{**row._asdict(), "share": row.share} for row in rows], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
