"""What LLVM makes of x86's kernels: that the tricks which keep it from worse code still work."""

from __future__ import annotations

import re

import pytest
import tvm
from kernel_runner import target_of
from tvm.tirx import PrimFunc

from tvm_mpq.cost.loops import find_step, multiply_loop
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.tiles import ConvolutionTile
from tvm_mpq.transform.small_buffers import compile_kernels

SAME = (1, 1, 1, 1)


def assembly(spec: KernelSpec, tile: ConvolutionTile | None = None) -> list[str]:
    """The instructions of the kernel, which the machine that runs the test need not have."""
    return instructions(spec.schedule(tile))


def instructions(function: PrimFunc, instruction: str = "avx2") -> list[str]:
    built = compile_kernels(tvm.IRModule({"main": function}), target_of(instruction).tvm_target())
    lines = str(built.mod.inspect_source("asm")).splitlines()
    return [line.strip() for line in lines if line.startswith("\t") and not line.startswith("\t.")]


def spec_of(shape: ConvolutionShape, words: int = 1) -> KernelSpec:
    return KernelSpec("conv2d", shape, "uint8", Output("uint8"), "avx2", int16_words=words)


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize(("rows", "blocks"), [(1, 8), (2, 4), (3, 4), (4, 2)])
def test_weights_are_operands_in_memory(rows: int, blocks: int, words: int) -> None:
    spec = spec_of(ConvolutionShape(1, 12, 12, 256, 256), words)
    lines = assembly(spec, ConvolutionTile(rows, blocks, 12, 32 // blocks, 1, False))
    products = [line for line in lines if line.startswith("vpmaddubsw")]
    assert len(products) == rows * blocks * words
    assert all(re.search(r"\(%r", line) for line in products)
    # No result goes to the stack and back between two steps of the reduction.
    first, last = (lines.index(line) for line in (products[0], products[-1]))
    assert not [line for line in lines[first:last] if line.startswith("vmov") and "(%rsp)" in line]


@pytest.mark.parametrize("channels", [3, 64])
def test_padding_is_copied_in_vectors(channels: int) -> None:
    lines = assembly(spec_of(ConvolutionShape(1, 14, 14, channels, 32, (3, 3), (2, 2), SAME)))
    assert len([line for line in lines if re.match(r"(movzbl|movb|vpinsrb|vpextrb)\b", line)]) < 60


def test_results_are_narrowed_in_whole_registers() -> None:
    lines = assembly(spec_of(ConvolutionShape(1, 12, 12, 64, 64)), ConvolutionTile(1, 8, 12, 1, 2, False))
    counts = {
        name: sum(line.startswith(name) for line in lines) for name in ("vcvtps2dq", "vpackuswb", "vpermd")
    }
    assert counts == {"vcvtps2dq": 8, "vpackuswb": 2, "vpermd": 2}


@pytest.mark.parametrize(("dtype", "multiply"), [("float32", "vfmadd"), ("uint8", "vpdpbusd")])
def test_a_tile_of_avx512_is_in_registers(dtype: str, multiply: str) -> None:
    """28 vectors are more than TVM leaves on the stack, and more than two steps of which LLVM would keep in order."""
    shape = ConvolutionShape(1, 14, 14, 1024, 256)
    spec = KernelSpec("conv2d", shape, dtype, Output(dtype), "avx512bf16")
    tile = spec.default_tile()
    assert isinstance(tile, ConvolutionTile)
    assert (tile.rows, tile.blocks, tile.unroll, tile.staged) == (14, 2, 1, False)
    lines = instructions(spec.schedule(tile), "avx512bf16")
    assert not [line for line in lines if "AllocWorkspace" in line]
    products = [line for line in lines if line.startswith(multiply)]
    assert len(products) == 28
    first, last = (lines.index(line) for line in (products[0], products[-1]))
    assert not [line for line in lines[first:last] if re.match(r"vmov\S+\s+%zmm\d+, .*\(", line)]


def test_a_peaks_loop_of_many_words_holds_each_product_once() -> None:
    lines = instructions(multiply_loop(find_step("pmaddubsw256x16"), 10, 1))
    assert sum(line.startswith("vpmaddubsw") for line in lines) == 160
