"""ARM's kernels and packages on an emulated device: the bytes that x86 gives, through RPC too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tvm
from reference import convolve, quantized_convolution
from servers import EMULATOR, Server, serving, start
from tvm.tirx import PrimFunc

from tvm_mpq import cli, sample
from tvm_mpq.compiler import compile_model
from tvm_mpq.device.connection import Place
from tvm_mpq.device.machine import DeviceMachine
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.neon import sums_of
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.linker import Linking
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.packing import pack_channels, pack_depthwise, pack_factors, pack_weights
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session
from tvm_mpq.target import Target, load_target
from tvm_mpq.transform.small_buffers import compile_kernels

OBJDUMP = shutil.which("aarch64-linux-gnu-objdump")
DEVICES = {"raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76"}
PROCESSORS = [*DEVICES.items(), ("graviton3", "neoverse-v1")]
HALF_FLOATS = r"fmla\tv\d+\.8h, v\d+\.8h, v\d+\.h\[\d\]"
INSTRUCTIONS = {
    "raspberry-pi-4": [r"smlal\t", r"sadalp\t"],
    "raspberry-pi-5": [r"sdot\t", HALF_FLOATS],
    "graviton3": [r"usmmla\t", r"sudot\t", HALF_FLOATS],
}
CHUNKS = {"raspberry-pi-5": 8, "graviton3": 16}
"""How many products are added up in half floats."""
IMAGES = 200
SHAPES = [
    ConvolutionShape(1, 5, 7, 19, 10),
    ConvolutionShape(2, 6, 6, 3, 17, (3, 3), (2, 2), (1, 1, 1, 1)),
    ConvolutionShape(1, 7, 9, 32, 24, (3, 3), (1, 1), (1, 0, 1, 2), (1, 2)),
    ConvolutionShape(1, 6, 5, 24, 12, (1, 5), (1, 1), (0, 2, 0, 2), (1, 1), 3),
    ConvolutionShape(1, 4, 4, 64, 40),
    ConvolutionShape(1, 1, 1, 37, 12),
]
HALF_SHAPES = [SHAPES[2], SHAPES[4]]
DEPTHWISE = [
    ConvolutionShape(1, 14, 14, 32, 32, (5, 5), (1, 1), (2, 2, 2, 2), groups=32),
    ConvolutionShape(2, 9, 11, 16, 16, (3, 3), (1, 1), (1, 1, 1, 1), groups=16),
    ConvolutionShape(1, 12, 10, 48, 48, (3, 3), (2, 2), (0, 0, 1, 1), groups=48),
    ConvolutionShape(1, 13, 15, 16, 16, (5, 5), (2, 2), (2, 2, 2, 2), groups=16),
    ConvolutionShape(1, 8, 7, 16, 16, (1, 7), (1, 3), (0, 3, 0, 3), groups=16),
    ConvolutionShape(1, 9, 9, 16, 16, (4, 2), (3, 1), groups=16),
    ConvolutionShape(1, 9, 9, 24, 24, (3, 3), (1, 1), (1, 1, 1, 1), groups=24),
]
KINDS = [(8, 0), (7, 0), (6, 0), (5, 0), (4, 0), (4, 32), (3, 16), (2, 8), (7, 12)]

needs_emulator = pytest.mark.skipif(
    not EMULATOR.exists(), reason="no emulated ARM device: scripts/arm-emulator sets it up"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> dict[str, Package]:
    folder = tmp_path_factory.mktemp("arm")
    sample.write_files(folder)
    found = {}
    for target in ("host", *DEVICES):
        found[target] = compile_model(
            folder / "fashion.onnx",
            target=target,
            calibration=folder / "calibration.npz",
            samples=64,
            output=folder / f"{target}.tar",
            baseline=False,
        )
    found["host"].save(folder / "host.tar")
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("images")
    sample.write_files(folder)
    with np.load(folder / "test.npz") as data:
        return {name: data[name][:IMAGES] for name in data.files}


@pytest.fixture(scope="module")
def servers():
    processes = [start(processor) for processor in DEVICES.values()]
    with serving(processes) as found:
        yield dict(zip(DEVICES, found, strict=True))


def _codes(shape: ConvolutionShape, bits: int, seed: int) -> tuple[np.ndarray, ...]:
    """Extreme codes on extreme activations: a sum that overflows would show."""
    rng = np.random.default_rng(seed)
    largest = 2 ** (bits - 1) - 1
    q = rng.integers(0, 256, (shape.batch, shape.height, shape.width, shape.in_channels)).astype(np.uint8)
    q[rng.random(q.shape) < 0.6] = rng.choice([0, 255])
    size = (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)
    codes = rng.integers(-largest, largest + 1, size)
    codes = np.where(rng.random(size) < 0.6, rng.choice([-largest, largest]), codes).astype(np.int8)
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    spread = 2e-2 / np.sqrt(codes[0].size)
    return q, codes, bias, (rng.random(shape.out_channels) * spread + 1e-6).astype(np.float32)


@dataclass
class Kernels:
    """Functions to be called in one run of the emulator, which takes long to start."""

    functions: dict[str, PrimFunc] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    expected: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, function: PrimFunc, arguments: list[np.ndarray]) -> None:
        """The last of ``arguments`` is the output."""
        self.functions[name] = function.with_attr("global_symbol", name)
        self.arrays |= {f"{name}/{place}": array for place, array in enumerate(arguments)}

    def expect(self, name: str, function: PrimFunc, arguments: list[np.ndarray], wanted: np.ndarray) -> None:
        """The output is to be ``wanted``, to the bit."""
        self.expected[name] = wanted
        self.add(name, function, [*arguments, np.full_like(wanted, 77)])


@needs_emulator
@pytest.mark.parametrize(("target", "processor"), PROCESSORS)
def test_every_kernel_of_weights_gives_numpys_bytes(target: str, processor: str, tmp_path: Path) -> None:
    machine, kernels = load_target(target), Kernels()
    _add_convolutions(kernels, machine)
    _add_depthwise(kernels, machine)
    halves = {}
    for number, shape in enumerate(HALF_SHAPES if target in CHUNKS else []):
        name = f"half_{number}"
        halves[name] = case = _half_case(shape, target, CHUNKS[target])
        kernels.add(name, case.function, case.arguments)
    outputs, assembly = _run(machine, processor, kernels, tmp_path)
    for name, case in halves.items():
        case.check(outputs.pop(name))
    assert {*outputs} == {*kernels.expected}
    for name, wanted in kernels.expected.items():
        np.testing.assert_array_equal(outputs[name], wanted, strict=True, err_msg=name)
    assert all(re.search(f"\t{word}", assembly) for word in INSTRUCTIONS[target])


def _add_convolutions(kernels: Kernels, machine: Target) -> None:
    zeros = (131, 7)
    for index, (bits, group) in enumerate(KINDS):
        for number, shape in enumerate(SHAPES):
            if (index + number) % 3 and bits != 8:
                continue  # each kind on some shapes: a build takes a third of a second
            q, codes, bias, multiplier = _codes(shape, bits, 10 * index + number)
            spec = KernelSpec("conv2d", shape, "uint8", Output("uint8"), machine.instruction, bits, group)
            row, factors, multiplied = spec.row, None, codes
            if group:
                count, largest = -(-shape.run // group), 2 ** (bits - 1) - 1
                rng = np.random.default_rng(number)
                size = (shape.out_channels, shape.kernel[0], count)
                factors = rng.integers(1, 127 // largest + 1, size).astype(np.int8)
                lines = codes.transpose(0, 2, 3, 1).reshape(*size[:2], shape.run)
                lines = lines * np.repeat(factors, group, axis=2)[:, :, : shape.run]
                o, i, r, s = codes.shape
                multiplied = lines.reshape(o, r, s, i).transpose(0, 3, 1, 2).astype(np.int8)
            kept = codes if row.multiplied else multiplied
            weights = [pack_weights(kept, shape.groups, row.lanes, row.group, row.words, row.nibbles)]
            if row.multiplied:
                assert factors is not None
                weights.append(pack_factors(factors, shape.groups, row.lanes))
            offset = 128 if row.activation == "int8" else 0
            folded = fold_zero_point(bias, multiplied, zeros[0] - offset)
            name = f"kernel_{index}_{number}"
            wanted = quantized_convolution(q, multiplied, bias, multiplier, zeros, shape)
            arguments = [
                q.reshape(-1, shape.in_channels),
                *weights,
                pack_channels(folded, shape.groups, row.lanes),
                pack_channels(multiplier, shape.groups, row.lanes),
                np.array(zeros, np.int32),
            ]
            kernels.expect(name, spec.schedule(), arguments, wanted)


def _add_depthwise(kernels: Kernels, machine: Target) -> None:
    zeros = (131, 7)
    # The first takes LLVM five seconds: once with dot products is enough.
    shapes = DEPTHWISE[1:] if machine.instruction == "i8mm" else DEPTHWISE
    cases = [(shape, "uint8") for shape in shapes] + [(DEPTHWISE[1], "float32")]
    for number, (shape, out) in enumerate(cases):
        q, codes, bias, multiplier = _codes(shape, 8, number)
        wanted = quantized_convolution(q, codes, bias, multiplier, zeros, shape, Output(out))
        arguments = [
            q.reshape(-1, shape.in_channels),
            pack_depthwise(codes),
            fold_zero_point(bias, codes, zeros[0]),
            multiplier,
            np.array(zeros, np.int32),
        ]
        spec = KernelSpec("depthwise", shape, "uint8", Output(out), machine.instruction)
        kernels.expect(f"depthwise_{number}", spec.schedule(), arguments, wanted)


@dataclass
class HalfCase:
    """A kernel on half floats: its arguments, and how near its output has to be to the sum of what it rounds."""

    function: PrimFunc
    arguments: list[np.ndarray]
    exact: np.ndarray
    rounded: np.ndarray
    bound: np.ndarray

    def check(self, found: np.ndarray) -> None:
        error, of_rounding = found - self.exact, self.rounded - self.exact
        assert (np.abs(error) <= self.bound).all()
        assert np.sqrt(np.mean(error**2)) < 2.5 * np.sqrt(np.mean(of_rounding**2))


def _half_case(shape: ConvolutionShape, target: str, chunk: int) -> HalfCase:
    rng = np.random.default_rng(chunk)
    x = rng.normal(0, 3, (shape.batch, shape.height, shape.width, shape.in_channels)).astype(np.float32)
    w = rng.normal(0, 1, (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel))
    w, bias = w.astype(np.float32), rng.normal(0, 1, shape.out_channels).astype(np.float32)
    spec = _halves(shape, target)
    row = spec.row
    assert (row.activation, row.group) == ("float16", chunk)
    exact, rounded, sizes = (
        convolve(f(x).astype(np.float64), f(w).astype(np.float64), shape).reshape(shape.rows, -1)
        for f in (np.asarray, np.float16, np.abs)
    )
    # Both factors are rounded, then a product up to ``chunk`` times with the sums it is in; floats add those.
    length = shape.reduction(chunk)
    relative = (1 + 2.0**-11) ** (chunk + 2) - 1 + (length / chunk + 2) * 2.0**-24
    bound = sizes * relative + length * 2.0**-25 + np.abs(bias) * 2.0**-23
    arguments = [
        x.reshape(-1, shape.in_channels),
        pack_weights(w.astype(np.float16), shape.groups, row.lanes, row.group, row.words),
        pack_channels(bias, shape.groups, row.lanes),
        np.full(exact.shape, 77, np.float32),
    ]
    return HalfCase(spec.schedule(), arguments, exact + bias, rounded + bias, bound)


def test_half_floats_are_widened_where_they_are_not_multiplied() -> None:
    for target in ("cortex-a53", "raspberry-pi-4", "armv7-neon", "host"):
        assert _halves(SHAPES[4], target).row.activation == "float32"
    # Three products of a pixel would be padded to eight.
    assert _halves(ConvolutionShape(1, 9, 9, 3, 16), "raspberry-pi-5").row.activation == "float32"


def _halves(shape: ConvolutionShape, target: str) -> KernelSpec:
    instruction = load_target(target).instruction
    return KernelSpec("conv2d", shape, "float32", Output("float32"), instruction, weight_dtype="float16")


def _run(machine: Target, processor: str, kernels: Kernels, at: Path) -> tuple[dict[str, np.ndarray], str]:
    """Call each function on the emulated device, on its arrays (see ``emulated_arm``): outputs, their assembly."""
    built = compile_kernels(tvm.IRModule(kernels.functions), machine.tvm_target())
    library = at / "kernels.so"
    built.export_library(str(library), fcompile=Linking(machine.architecture))
    np.savez(at / "in.npz", **kernels.arrays)
    _emulate(processor, Path(__file__).with_name("emulated_arm.py"), library, "in.npz", "out.npz", at=at)
    with np.load(at / "out.npz") as outputs:
        return dict(outputs), str(built.mod.inspect_source("asm"))


def _emulate(processor: str, *arguments: str | Path, at: Path) -> None:
    environment = {**os.environ, "TVM_MPQ_CPU": processor, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [EMULATOR, *map(str, arguments)],
        env=environment,
        cwd=at,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_emulator
@pytest.mark.parametrize("target", DEVICES)
def test_outputs_and_loss_of_a_device_are_those_of_x86(target, packages, images, servers) -> None:
    labels = images["labels"]
    (name,) = (spec.name for spec in packages["host"].metadata.inputs)
    here = Session(packages["host"], 1)
    there = DeviceMachine(Place(servers[target].address)).session(packages[target], 1)
    outputs: list[list[np.ndarray]] = [[], []]
    for index in range(IMAGES):
        for found, session in zip(outputs, (here, there), strict=True):
            found.append(session.run({name: images[name][index : index + 1]})[0])
    ours, theirs = (np.concatenate(found) for found in outputs)
    assert ours.tobytes() == theirs.tobytes()
    assert _loss(ours, labels) == _loss(theirs, labels) < 0.5


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


@needs_emulator
def test_a_device_without_dot_products_is_recognized_before_it_runs(
    packages: dict[str, Package], images: dict[str, np.ndarray], servers: dict[str, Server], tmp_path, capfd
) -> None:
    packages["raspberry-pi-5"].save(tmp_path / "a76.tar")
    (name,) = (spec.name for spec in packages["host"].metadata.inputs)
    np.savez(tmp_path / "in.npz", **{name: images[name][:1]})
    address = str(servers["raspberry-pi-4"].address)
    run = ["run", str(tmp_path / "a76.tar"), "--inputs", str(tmp_path / "in.npz"), "--rpc", address]
    assert cli.main(run) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: this device lacks dotprod, ")
    assert "compiled for target 'raspberry-pi-5'" in said
    assert said.count("\n") == 1


@pytest.mark.skipif(
    OBJDUMP is None, reason="no objdump for arm64: apt-get install binutils-aarch64-linux-gnu"
)
def test_dot_products_are_in_the_library_of_the_processor_that_has_them(packages, tmp_path) -> None:
    counts = {}
    for target in DEVICES:
        library = tmp_path / "model.so"
        library.write_bytes(packages[target].library)
        assert OBJDUMP is not None
        text = subprocess.run(
            [OBJDUMP, "-d", str(library)], capture_output=True, text=True, check=True
        ).stdout
        counts[target] = {word: text.count(f"\t{word}\t") for word in ("sdot", "smlal", "sadalp")}
    assert counts["raspberry-pi-5"]["sdot"] > 100
    assert counts["raspberry-pi-4"]["sdot"] == 0
    assert counts["raspberry-pi-4"]["smlal"] > 100
    assert counts["raspberry-pi-4"]["sadalp"] > 100


@pytest.mark.parametrize("bits", range(2, 9))
def test_int16_holds_the_pairs_that_are_added_in_it(bits: int) -> None:
    assert sums_of(bits) * 128 * (2 ** (bits - 1) - 1) <= 32767
