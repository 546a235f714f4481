"""Kernels and networks executed with the instructions that this machine lacks, on an emulated PC.

All of a target's kernels run in one boot. On machines with AVX-512 this still says more than running there: the
processor has no instruction that the target's file does not name. TVM_MPQ_EMULATE=1 runs every other kernel test
there too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from emulated_cases import OTHERS, SPECS, Case, cases, exists
from emulated_network import lay_out
from emulated_pc import EmulationError, require_emulator, run_emulated
from emulated_program import Buffer, Program
from interpreter import interpret
from small_networks import mixed, prepared, tokens
from tvm.script import tirx as T  # noqa: N812

from tvm_mpq.target import load_target

TARGETS = ["x86-64-v4", "cascadelake", "alderlake", "znver4"]
MNEMONICS = {
    "x86-64-v4": ("vpmaddwd", "zmm"),
    "cascadelake": ("vpdpbusd", "zmm"),
    "znver4": ("vpdpbusd", "zmm"),
    "alderlake": ("{vex}\tvpdpbusd", "ymm"),
}


def load(program: Program, name: str, case: Case) -> Buffer:
    return program.call(name, case.function, *map(program.constant, case.arguments))


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    require_emulator()
    return request.param


@pytest.fixture(scope="module")
def kernels(target: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each case of the target gave, and what it should."""
    program = Program()
    known = cases(load_target(target).instruction)
    outputs = [load(program, name, case) for name, case in known.items()]
    results = run_emulated(program, outputs, target)
    return {
        name: (result, case.expected) for (name, case), result in zip(known.items(), results, strict=True)
    }


# znver4 differs from cascadelake in what LLVM may use beside the instruction: the networks' kernels show that.
@pytest.mark.parametrize("target", TARGETS[:3], indirect=True, scope="module")
@pytest.mark.parametrize("name", [*SPECS, *OTHERS])
def test_kernels_equal_integer_arithmetic_in_numpy(
    kernels: dict[str, tuple[np.ndarray, np.ndarray]], target: str, name: str
) -> None:
    if name in SPECS and not exists(replace(SPECS[name], instruction=load_target(target).instruction)):
        pytest.skip(f"{target} has no such kernel")
    result, expected = kernels[name]
    np.testing.assert_array_equal(result, expected, strict=True)
    assert len(np.unique(expected)) > 10, "an output that says nothing proves nothing"


@pytest.mark.parametrize("make", [mixed, tokens])
def test_networks_equal_integer_arithmetic_in_numpy(target: str, make: Callable[[], onnx.ModelProto]) -> None:
    network = prepared(make)
    annotated = network.annotate()
    lowered = network.lower(annotated, load_target(target))
    feeds = network.feeds()
    far = {name: array * np.float32(25) for name, array in feeds.items()}
    program = Program()
    outputs = [output for batch in (feeds, far) for output in lay_out(program, lowered, batch)]
    results = run_emulated(program, outputs, target)
    expected = [output for batch in (feeds, far) for output in interpret(annotated, batch)]
    for ours, exact in zip(results, expected, strict=True):
        np.testing.assert_array_equal(ours, exact, strict=True)


def one_by_one(target: str, *changes: np.ndarray) -> tuple[Program, Buffer]:
    """A program of one convolution; ``changes`` take the place of its first arguments."""
    case = cases(load_target(target).instruction)["1x1"]
    program = Program()
    return program, load(program, "1x1", replace(case, arguments=(*changes, *case.arguments[len(changes) :])))


@pytest.mark.parametrize("target", ["znver4"], indirect=True)
def test_bfloat16_activations_meet_bfloat16_weights_where_there_is_an_instruction(target: str) -> None:
    known = cases(load_target(target).instruction)
    chosen = [known[name] for name in ("bfloat16 3x3", "bfloat16 matmul")]
    program = Program()
    outputs = [load(program, f"kernel{place}", case) for place, case in enumerate(chosen)]
    assert re.search(r"\tvdpbf16ps\t.*zmm", program.kernels(target))
    for result, case in zip(run_emulated(program, outputs, target), chosen, strict=True):
        np.testing.assert_array_equal(result, case.expected)


def test_kernels_are_made_of_the_instruction(target: str) -> None:
    assembly = one_by_one(target)[0].kernels(target)
    mnemonic, register = MNEMONICS[target]
    assert re.search(rf"\t{re.escape(mnemonic)}\t.*{register}", assembly)


@pytest.mark.parametrize(
    ("kernel", "processor"),
    [
        ("x86-64-v4", "haswell"),
        ("cascadelake", "x86-64-v4"),
        ("cascadelake", "alderlake"),
        ("alderlake", "haswell"),
    ],
)
def test_a_processor_without_the_instructions_stops(kernel: str, processor: str) -> None:
    require_emulator()
    program, output = one_by_one(kernel)
    with pytest.raises(EmulationError, match=r"1x1: exception 6 at .*\t"):
        run_emulated(program, [output], kernel, processor)


def test_what_a_kernel_raises_is_told() -> None:
    require_emulator()
    program, output = one_by_one("x86-64-v4", np.zeros((64, 32), np.uint8))
    with pytest.raises(EmulationError, match=r"1x1: .*x\.shape"):
        run_emulated(program, [output], "x86-64-v4")


def test_writing_beside_the_output_is_told() -> None:
    require_emulator()

    @T.prim_func(s_tir=True)
    def careless(a: T.Buffer((8,), "int32"), b: T.Buffer((8,), "int32")) -> None:
        T.func_attr({"tirx.noalias": True})
        for i in T.serial(9):
            with T.sblock("b"):
                v = T.axis.spatial(9, i)
                T.reads()
                T.writes()
                b[v] = a[0]

    program = Program()
    output = program.call("careless", careless, program.constant(np.ones(8, np.int32)))
    with pytest.raises(EmulationError, match="beside its output"):
        run_emulated(program, [output], "x86-64-v4")
