"""What is read from NVIDIA's tools, and the arithmetic on it."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path

import pytest
from cuda_texts import PRODUCTS, require_compiler, source
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_mpq.cli import main
from tvm_mpq.cuda import nvcc
from tvm_mpq.cuda_check import machine_code
from tvm_mpq.cuda_check.limits import LIMITS, limits
from tvm_mpq.cuda_check.machine_code import (
    fatbins,
    kernel_codes,
    parse_assembly,
    parse_bounds,
    parse_resources,
)
from tvm_mpq.cuda_check.occupancy import occupancy
from tvm_mpq.cuda_check.report import code_of
from tvm_mpq.errors import MpqError

RESOURCES = """
Fatbin elf code:
================
arch = sm_80

Resource usage:
 Common:
  GLOBAL:0
 Function one:
  REG:32 STACK:8 SHARED:256 LOCAL:16 CONSTANT[0]:376 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function two:
  REG:255 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:368 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_90
 Function one:
  REG:40 STACK:0 SHARED:1280 LOCAL:0 CONSTANT[0]:376 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
ASSEMBLY = """
	code for sm_80
		Function : one
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;   /* 0x00000a00ff017624 */
                                                                             /* 0x000fe400078e00ff */
        /*0010*/              @P0  LDG.E.128.CONSTANT R4, [R10.64] ;         /* 0x000000040a047981 */
        /*0020*/             @!P1  LDG.E.U8 R4, [R10.64+0x1] ;               /* 0x000000040a047981 */
        /*0030*/                   LDG.E R4, [R10.64] ;                      /* 0x000000040a047981 */
        /*0040*/                   IMMA.16816.S8.S8 R4, R2.ROW, R4.COL, RZ ; /* 0x000000040a047981 */
        /*0048*/                   IMMA.16864.U4.S4 R4, R2.ROW, R4.COL, RZ ; /* 0x000000040a047981 */
        /*0050*/                   IDP.4A.S8.S8 R4, R2, R4, RZ ;             /* 0x000000040a047981 */
        /*0060*/                   IMAD R4, R2, R4, RZ ;                     /* 0x000000040a047981 */
        /*0070*/                   STL [R1], R4 ;                            /* 0x000000040a047981 */
        /*0080*/                   BRA 0x80;                                 /* 0x000000040a047981 */
        /*0090*/                   NOP;                                      /* 0x000000040a047981 */
		Function : two
        /*0000*/                   EXIT ;                                    /* 0x00000a00ff017624 */
"""
BOUNDS = """
arch = sm_80
.nv.info
	Attribute:	EIATTR_REGCOUNT
	Value:	function: one(0x1e)	register count: 12
.nv.info.one
	<0x11>
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x40 0x2 0x1 
.nv.info.two
	Attribute:	EIATTR_MAXREG_COUNT
	Value:	0xff
"""


def test_resources_are_read() -> None:
    found = parse_resources(RESOURCES)
    assert found["sm_80", "one"] == {"REG": 32, "STACK": 8, "SHARED": 256, "LOCAL": 16}
    assert [*found] == [("sm_80", "one"), ("sm_80", "two"), ("sm_90", "one")]


def test_instructions_are_counted() -> None:
    found = parse_assembly(ASSEMBLY)
    kinds = {"LDG 16": 1, "LDG 1": 1, "LDG 4": 1, "IMMA": 2, "IMMA U4": 1, "dp4a": 1, "IMAD": 1, "STL": 1}
    assert found == {("sm_80", "one"): (kinds, 10), ("sm_80", "two"): ({}, 1)}


def test_threads_of_a_block_are_read() -> None:
    assert parse_bounds(BOUNDS) == {("sm_80", "one"): 128}


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "warps", "limiter"),
    [
        ("sm_80", 256, 32, 0, 64, "warps"),
        ("sm_80", 256, 64, 0, 32, "registers"),
        ("sm_80", 256, 33, 0, 48, "registers"),  # 33 are handed out as 40
        ("sm_80", 128, 32, 41 << 10, 12, "shared memory"),  # 42 KB of 164: the system has one of each block
        ("sm_80", 32, 16, 0, 32, "blocks"),
        ("sm_75", 64, 32, 0, 32, "warps"),
        ("sm_75", 32, 32, 8 << 10, 8, "shared memory"),
        ("sm_87", 512, 40, 0, 48, "warps"),
        ("sm_90", 1024, 64, 0, 32, "registers"),
        ("sm_90", 128, 32, 228 << 10, 0, ""),
        ("sm_80", 1024, 65, 0, 0, ""),
    ],
)
def test_occupancy(
    architecture: str, threads: int, registers: int, shared: int, warps: int, limiter: str
) -> None:
    found = occupancy(limits(architecture), threads, registers, shared)
    assert (found.warps, found.limiter) == (warps, limiter)
    assert found.share == warps / limits(architecture).warps


CALCULATOR = """
#include <cuda_occupancy.h>
extern "C" int blocks(int major, int minor, int threads_sm, int shared_sm, int optin, int reserved, int threads,
                      int registers, int shared) {
  cudaOccDeviceProp p;
  p.computeMajor = major; p.computeMinor = minor; p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiprocessor = threads_sm; p.regsPerBlock = p.regsPerMultiprocessor = 65536; p.warpSize = 32;
  p.sharedMemPerBlock = 48 << 10; p.sharedMemPerMultiprocessor = shared_sm; p.numSms = 1;
  p.sharedMemPerBlockOptin = optin; p.reservedSharedMemPerBlock = reserved;
  cudaOccFuncAttributes a;
  a.maxThreadsPerBlock = 1024; a.numRegs = registers; a.sharedSizeBytes = 0;
  a.partitionedGCConfig = PARTITIONED_GC_OFF; a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  a.maxDynamicSharedSizeBytes = shared; a.numBlockBarriers = 1;
  cudaOccDeviceState s;
  s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
  cudaOccResult r;
  cudaOccError e = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, shared);
  return e == CUDA_OCC_SUCCESS ? r.activeBlocksPerMultiprocessor : -e;
}
"""


@pytest.fixture(scope="module")
def calculator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """NVIDIA's own calculator, a header of the CUDA toolkit."""
    found = nvcc.find_tool("nvcc")
    places = [
        Path("/usr/local/cuda/include"),
        *([Path(found).resolve().parents[1] / "include"] if found else []),
    ]
    header = next((place for place in places if (place / "cuda_occupancy.h").is_file()), None)
    if header is None:
        pytest.skip("no cuda_occupancy.h: the CUDA toolkit is not installed")
    require_compiler()
    folder = tmp_path_factory.mktemp("occupancy")
    (folder / "c.cpp").write_text(CALCULATOR)
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-w",
        "-I",
        str(header),
        str(folder / "c.cpp"),
        "-o",
        str(folder / "c.so"),
    ]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "c.so"))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    number=st.sampled_from(sorted(LIMITS)),
    threads=st.integers(1, 1024),
    registers=st.integers(1, 255),
    shared=st.integers(0, 228 << 10),
)
def test_occupancy_is_that_of_nvidias_calculator(
    calculator: ctypes.CDLL, number: int, threads: int, registers: int, shared: int
) -> None:
    known = LIMITS[number]
    shared = min(shared, known.shared_block)
    theirs = calculator.blocks(
        *divmod(number, 10), known.threads, known.shared, known.shared_block, known.shared_reserved, threads,
        registers, shared,
    )  # fmt: skip
    assert theirs >= 0
    assert occupancy(known, threads, registers, shared).blocks == theirs


def test_an_unknown_architecture() -> None:
    with pytest.raises(MpqError, match="sm_12 are not known; known are sm_75, "):
        limits("sm_12")


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "find_tool", lambda name: None)
    with pytest.raises(
        MpqError,
        match=r"no cuobjdump and no nvdisasm found: .*pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm",
    ):
        kernel_codes(b"")


def test_a_file_without_code(tmp_path: Path) -> None:
    path = tmp_path / "nothing.so"
    path.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(MpqError, match="holds no code for NVIDIA's GPUs"):
        code_of(path)
    with pytest.raises(MpqError, match="cannot read"):
        code_of(tmp_path / "missing")


def require_tools() -> None:
    missing = [name for name in ("nvcc", "cuobjdump", "nvdisasm") if nvcc.find_tool(name) is None]
    if missing:
        pytest.skip(f"CUDA's tools are not installed: {', '.join(missing)}")


def test_kernels_that_nvidias_compiler_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_tools()
    architectures = ("sm_80", "sm_90")
    products = list(PRODUCTS)[:3]
    binary = nvcc.best_code(source(products), architectures)[0]
    library = tmp_path / "library.so"
    library.write_bytes(b"\x7fELF" + bytes(99) + binary + bytes(7) + binary[:40])
    assert fatbins(library.read_bytes()) == [binary]
    codes = {(code.architecture, code.name): code for code in kernel_codes(binary)}
    for architecture in architectures:
        for name in products:
            kinds = codes[architecture, name].instructions
            assert ("HMMA" if "f16" in name else "IMMA") in kinds
            assert codes[architecture, name].spills == 0
        assert codes[architecture, "dots"].instructions["dp4a"] == 4
        assert codes[architecture, "transpose"].shared == 8 * 9 * 4
        assert codes[architecture, "sum"].threads == 256
        assert codes[architecture, "sum"].instructions["BAR"] == 1
    report = tmp_path / "report.json"
    assert main(["kernels", str(library), "--architecture", "sm_90", "--json", str(report)]) == 0
    assert f"sm_90: {len(codes) // 2} kernels" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(report.read_text())}
    assert rows["sum"]["occupancy"]["limiter"] == "warps"
    assert main(["kernels", str(library), "--architecture", "sm_75"]) == 2
    assert "it has some for sm_80, sm_90" in capsys.readouterr().err
