"""How close the inner loops of ARM's kernels come to what a core can multiply at most, by llvm-mca: no ARM is needed.

    python scripts/arm_loops.py [--llvm-mca llvm-mca-22] [--json FILE]

For each processor, precision and shape: the default tile's innermost loop of the direct kernel, cycles of one pass as
llvm-mca simulates it, and the least cycles that its multiplications take on the units that the model gives the
processor. llvm-mca (Debian's package llvm-22) assumes that all loads hit the first-level cache. It has no models of
Cortex-A72 and A76: those of A57 and of Neoverse N1, which is A76 for servers, stand for them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import tvm

from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.target import load_target

PROCESSORS = {
    "cortex-a55": "cortex-a55",
    "raspberry-pi-4": "cortex-a57",
    "raspberry-pi-5": "neoverse-n1",
    "graviton3": "neoverse-v1",
}
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
PRODUCTS = {"sdot": 16, "usdot": 16, "sudot": 16, "usmmla": 32, "smull": 8, "smlal": 8}
"""Of an instruction; floats fill 128 bits."""
MULTIPLICATIONS = (*PRODUCTS, "fmla", "fmul")
ITERATIONS = 200


class Loop(NamedTuple):
    target: str
    precision: str
    shape: str
    tile: str
    instructions: int
    multiplications: int
    products: int
    cycles: float
    least: float

    @property
    def share(self) -> float:
        return self.least / self.cycles


def assembly(spec: KernelSpec, target: str) -> str:
    function = spec.schedule().with_attr("global_symbol", "main")
    built = tvm.compile(tvm.IRModule({"main": function}), target=load_target(target).tvm_target())
    return str(built.mod.inspect_source("asm"))


def innermost(text: str) -> list[str]:
    """The instructions of the loop without another in it that is densest in multiplications."""
    lines = text.splitlines()
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for place, line in enumerate(lines):
        if label := re.match(r"(\.\w+):", line):
            labels[label[1]] = place
        jump = re.match(r"\s+(?:b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s*(\.\w+)", line)
        if jump and jump[1] in labels:
            body = lines[labels[jump[1]] + 1 : place + 1]
            loops.append([x.strip() for x in body if not x.strip().startswith((".", "//"))])
    dense = (loop for loop in loops if len(_multiplications(loop)) >= 8)
    return max(dense, key=lambda loop: len(_multiplications(loop)) / len(loop))


def _multiplications(loop: list[str]) -> list[str]:
    return [line for line in loop if line.split()[0] in MULTIPLICATIONS]


def products(line: str) -> int:
    return PRODUCTS.get(line.split()[0], 8 if ".8h" in line else 4)


def simulated(lines: list[str], processor: str, mca: str) -> float:
    """Cycles of a pass."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loop.s"
        file.write_text("\n".join(lines) + "\n")
        command = [mca, "-mtriple=aarch64", f"-mcpu={processor}", "-mattr=+dotprod"]
        command += [f"-iterations={ITERATIONS}", str(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", said)
    assert found is not None
    return int(found[1]) / ITERATIONS


def measure(target: str, precision: str, name: str, mca: str) -> Loop:
    processor, (dtype, options) = PROCESSORS[target], PRECISIONS[precision]
    spec = KernelSpec(
        "conv2d", SHAPES[name], dtype, Output(dtype), load_target(target).instruction, **options
    )
    tile = spec.default_tile()
    loop = innermost(assembly(spec, target))
    multiplications = _multiplications(loop)
    count = len(multiplications)
    made = sum(map(products, multiplications))
    # The cost of the multiplications alone, in the same model.
    least = simulated(list(map(_alone, multiplications, range(count))), processor, mca)
    text = f"{tile.rows} × {spec.row.lanes * tile.blocks}"  # type: ignore[union-attr]
    cycles = simulated(loop, processor, mca)
    return Loop(target, spec.precision, name, text, len(loop), count, made, cycles, least)


def _alone(line: str, index: int) -> str:
    """The same on operands that nothing changes, into one of twelve results."""
    kind, result = line.split()[:2]
    suffix = result.partition(".")[2].strip(",")
    operand = suffix if kind.startswith("f") else "8b" if kind.startswith("sm") else "16b"
    return f"{kind} v{index % 12}.{suffix}, v30.{operand}, v31.{operand}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--llvm-mca", default="llvm-mca", help="The program; older ones lack models.")
    parser.add_argument("--json", type=Path, help="Also write the rows here.")
    options = parser.parse_args()
    rows = [
        measure(target, precision, name, options.llvm_mca)
        for target in PROCESSORS
        for precision in PRECISIONS
        for name in SHAPES
    ]
    print(
        "| target | precision | kernel | tile | instructions | products | cycles | products a cycle | of the peak |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        rate = row.products / row.cycles
        print(
            f"| {row.target} | {row.precision} | {row.shape} | {row.tile} | {row.instructions} | {row.products} "
            f"| {row.cycles:.1f} | {rate:.1f} | {100 * row.share:.0f} % |"
        )
    if options.json:
        options.json.write_text(json.dumps([{**row._asdict(), "share": row.share} for row in rows], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
