"""How close the inner loops of ARM's kernels come to what a core can multiply at most, by llvm-mca: no ARM is needed.

    python scripts/arm_loops.py [--json FILE]

For each processor and shape: the default tile's innermost loop, cycles of one pass as llvm-mca simulates it, and the
least cycles that its multiplications take on the units that the model gives the processor. llvm-mca (Debian's package
llvm) assumes that all loads hit the first-level cache. Its models of Cortex-A72 and A76 are that of A57, with one unit
for products of bytes where A76 has two: a share of a peak, not a time.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import tvm

from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.target import load_target

PROCESSORS = {"cortex-a55": "cortex-a55", "raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76"}
SHAPES = {
    "1×1": ConvolutionShape(1, 14, 14, 128, 96),
    "3×3": ConvolutionShape(1, 28, 28, 64, 96, (3, 3), (1, 1), (1, 1, 1, 1)),
}
MULTIPLICATIONS = ("sdot", "smull", "smlal", "fmla")
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
    return max(
        (loop for loop in loops if _multiplications(loop) >= 8), key=lambda x: _multiplications(x) / len(x)
    )


def _multiplications(loop: list[str]) -> int:
    return sum(line.split()[0] in MULTIPLICATIONS for line in loop)


def simulated(lines: list[str], processor: str) -> float:
    """Cycles of a pass."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loop.s"
        file.write_text("\n".join(lines) + "\n")
        command = ["llvm-mca", "-mtriple=aarch64", f"-mcpu={processor}", "-mattr=+dotprod"]
        command += [f"-iterations={ITERATIONS}", str(file)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", said)
    assert found is not None
    return int(found[1]) / ITERATIONS


def measure(target: str, dtype: str, name: str) -> Loop:
    processor = PROCESSORS[target]
    spec = KernelSpec("conv2d", SHAPES[name], dtype, Output(dtype), load_target(target).instruction)
    tile = spec.default_tile()
    loop = innermost(assembly(spec, target))
    count = _multiplications(loop)
    # The cost of the multiplications alone, in the same model.
    kinds = sorted({line.split()[0] for line in loop} & {*MULTIPLICATIONS})
    alone = [_alone(kind, index) for kind in kinds for index in range(12)]
    least = simulated(alone, processor) / len(alone) * count
    row = spec.row
    per = 4 * row.per_word
    text = f"{tile.rows} × {4 * tile.blocks}"  # type: ignore[union-attr]
    cycles = simulated(loop, processor)
    return Loop(target, spec.precision, name, text, len(loop), count, count * per, cycles, least)


def _alone(kind: str, index: int) -> str:
    long = {"sdot": "4s, v30.16b, v31.16b", "fmla": "4s, v30.4s, v31.4s"}
    return f"{kind} v{index}.{long.get(kind, '8h, v30.8b, v31.8b')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="Also write the rows here.")
    options = parser.parse_args()
    rows = [
        measure(target, dtype, name)
        for target in PROCESSORS
        for dtype in ("uint8", "float32")
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
