from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tvm_mpq.cpu import X86_64_V2, X86_64_V3, X86_64_V4, cpu_features
from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import NVIDIA_GPU
from tvm_mpq.precision import FP32, W8A8, Precision
from tvm_mpq.target import (
    INSTRUCTIONS,
    host_target,
    load_target,
    missing_features,
    parse_target,
    target_names,
)

NAMES = target_names()
FILE = (Path(__file__).parents[1] / "targets" / "x86-64-v3.toml").read_text()
PRECISIONS = FILE[FILE.index("precisions = ") + len("precisions = ") : FILE.index("]") + 1]

# LLVM's name → /proc/cpuinfo's, for what LLVM may pick by itself when it compiles plain arithmetic.
LLVM_TO_CPUINFO = {
    "x86_64": {
        "amx-bf16": "amx_bf16",
        "amx-int8": "amx_int8",
        "amx-tile": "amx_tile",
        "avx": "avx",
        "avx2": "avx2",
        "avx512bf16": "avx512_bf16",
        "avx512bitalg": "avx512_bitalg",
        "avx512bw": "avx512bw",
        "avx512cd": "avx512cd",
        "avx512dq": "avx512dq",
        "avx512f": "avx512f",
        "avx512fp16": "avx512_fp16",
        "avx512ifma": "avx512ifma",
        "avx512vbmi": "avx512vbmi",
        "avx512vbmi2": "avx512_vbmi2",
        "avx512vl": "avx512vl",
        "avx512vnni": "avx512_vnni",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "avxvnni": "avx_vnni",
        "bmi": "bmi1",
        "bmi2": "bmi2",
        "cx16": "cx16",
        "f16c": "f16c",
        "fma": "fma",
        "gfni": "gfni",
        "lzcnt": "abm",
        "movbe": "movbe",
        "pclmul": "pclmulqdq",
        "popcnt": "popcnt",
        "sahf": "lahf_lm",
        "sse4.1": "sse4_1",
        "sse4.2": "sse4_2",
        "sse4a": "sse4a",
        "ssse3": "ssse3",
        "vaes": "vaes",
        "vpclmulqdq": "vpclmulqdq",
        "xsave": "xsave",
    },
    "aarch64": {
        "bf16": "bf16",
        "complxnum": "fcma",
        "dit": "dit",
        "dotprod": "asimddp",
        "flagm": "flagm",
        "fp-armv8": "fp",
        "fp16fml": "asimdfhm",
        "fullfp16": "asimdhp",
        "i8mm": "i8mm",
        "jsconv": "jscvt",
        "lse": "atomics",
        "neon": "asimd",
        "rcpc": "lrcpc",
        "rdm": "asimdrdm",
        "sve": "sve",
    },
    "arm": {"d32": "vfpd32", "hwdiv": "idivt", "hwdiv-arm": "idiva", "neon": "neon", "vfp4": "vfpv4"},
    "riscv64": {name: name for name in "imafdcv"},
}
ALSO = {"asimdhp": {"fphp"}}
"""What Linux has two names for."""


def test_the_promised_targets_are_there():
    assert NAMES[0] == "host"
    assert {"x86-64-v2", "x86-64-v3", "x86-64-v4", "znver4", "cascadelake", "alderlake", "haswell"} <= {
        *NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_target_needs_all_that_its_compiler_may_use(name):
    import tvm

    target = load_target(name)
    assert target.name == name
    assert target.instruction in INSTRUCTIONS
    assert target.supports(FP32)
    assert target.supports(W8A8)
    assert target.supports(Precision.parse("w4g32a32"))
    assert not target.supports(Precision.parse("w8g32a8"))
    processor = target.tvm_target().host if target.gpu is not None else target.tvm_target()
    used = {str(feature) for feature in tvm.target.codegen.llvm_get_cpu_features(processor)}
    names = LLVM_TO_CPUINFO[target.architecture]
    features = {names[f] for f in used if f in names}
    gpu = {NVIDIA_GPU} if target.gpu is not None else set()
    assert features.union(gpu, *(ALSO.get(f, ()) for f in features)) == {*target.features}


@pytest.mark.parametrize(
    ("instruction", "feature"),
    [
        ("amx", "amx_int8"),
        ("amx", "amx_tile"),
        ("avx512bf16", "avx512_bf16"),
        ("avx512vnni", "avx512_vnni"),
        ("avxvnni", "avx_vnni"),
        ("avx512", "avx512bw"),
        ("avx2", "avx2"),
        ("i8mm", "i8mm"),
        ("i8mm", "asimdhp"),
        ("dotprod", "asimddp"),
        ("dotprod", "asimdhp"),
        ("neon", "asimd"),
        ("neon32", "neon"),
    ],
)
def test_an_instruction_is_among_the_features(instruction, feature):
    named = [target for target in map(load_target, NAMES) if target.instruction == instruction]
    assert named
    assert all(feature in target.features for target in named)


@pytest.mark.parametrize(
    ("flags", "instruction", "mcpu", "mattr"),
    [
        (
            {*X86_64_V4, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"},
            "amx",
            "x86-64-v4",
            ("+avx512vnni", "+avx512bf16", "+amx-tile", "+amx-int8"),
        ),
        (
            {*X86_64_V4, "avx512_vnni", "avx512_bf16"},
            "avx512bf16",
            "x86-64-v4",
            ("+avx512vnni", "+avx512bf16"),
        ),
        ({*X86_64_V4, "avx512_bf16"}, "avx512", "x86-64-v4", ()),
        ({*X86_64_V4, "avx512_vnni", "avx_vnni"}, "avx512vnni", "x86-64-v4", ("+avx512vnni",)),
        ({*X86_64_V4, "avx_vnni"}, "avxvnni", "x86-64-v3", ("+avxvnni",)),
        ({*X86_64_V3, "avx_vnni"}, "avxvnni", "x86-64-v3", ("+avxvnni",)),
        ({*X86_64_V4}, "avx512", "x86-64-v4", ()),
        ({*X86_64_V3, "avx512f"}, "avx2", "x86-64-v3", ()),
        ({*X86_64_V3} - {"fma"}, "generic", "x86-64-v2", ()),
        ({*X86_64_V2}, "generic", "x86-64-v2", ()),
    ],
)
def test_host_is_the_best_level_that_the_flags_fill(flags, instruction, mcpu, mattr):
    target = host_target(frozenset(flags))
    assert (target.instruction, target.mcpu, target.mattr) == (instruction, mcpu, mattr)
    assert flags.issuperset(target.features)


def test_host_is_refused_where_nothing_fits():
    with pytest.raises(MpqError, match=r"needs an x86-64 Linux machine with SSE4\.2"):
        host_target(frozenset({"asimd", "asimddp"}))


def test_this_machine_can_run_its_host_target_and_lacks_what_a_target_makes_up():
    assert missing_features(load_target("host")) == []
    made_up = dataclasses.replace(load_target("host"), features=("sse4_2", "warp_drive"))
    assert missing_features(made_up) == ["warp_drive"]
    assert "sse4_2" in cpu_features()


@pytest.mark.parametrize(
    ("name", "near"), [("znver5", "znver4"), ("x86_64_v3", "x86-64-v3"), ("cascade-lake", "cascadelake")]
)
def test_an_unknown_name_is_answered_with_near_ones(name, near):
    with pytest.raises(MpqError, match=rf"unknown target '{name}'; did you mean .*{near}"):
        load_target(name)


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(MpqError, match=r"unknown target '\?\?'; known are host, alderlake"):
        load_target("??")


def test_a_name_cannot_reach_out_of_the_folder():
    with pytest.raises(MpqError, match="unknown target"):
        load_target("../pyproject")


def test_an_unknown_processor_is_answered_with_near_ones():
    wrong = dataclasses.replace(load_target("raspberry-pi-4"), mcpu="cortex-a27")
    with pytest.raises(
        MpqError, match=r"LLVM knows no mcpu 'cortex-a27' for aarch64.*did you mean cortex-a7"
    ):
        wrong.tvm_target()


def test_a_target_can_be_a_users_own_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(FILE.replace('name = "x86-64-v3"', 'name = "mine"\ncores = 4'))
    target = load_target(str(file))
    assert (target.name, target.cores, target.tvm_dict()["num-cores"]) == ("mine", 4, 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name = ", "name ", "not valid TOML"),
        ('name = "x86-64-v3"', "", "the field 'name' must be a text, not None"),
        (
            'instruction = "avx2"',
            'instruction = "avx3"',
            "unknown instruction 'avx3'; known are amx, avx512bf16",
        ),
        ('"w8a8"', '"w9a8"', "unknown precision 'w9a8'"),
        ('"w4g*a8"', '"w4g*b8"', "unknown precision"),
        (PRECISIONS, '"w8a8"', "the field 'precisions' must be a list of texts, not 'w8a8'"),
        ("[tvm]", "[tmv]", "unknown field 'tmv'"),
        ('kind = "llvm"', 'kind = "cuda"', "kind 'cuda' is not supported"),
        (
            "x86_64-linux",
            "aarch64-linux",
            "instruction 'avx2' is of x86_64, but [tvm] mtriple is 'aarch64-linux-gnu'",
        ),
        (
            "[roofline]",
            "[device]\nkey = 'x'\n[roofline]",
            "[device]: unknown field 'key'; known are emulator, rpc_key",
        ),
        ("[roofline]", "[device]\n[roofline]", "[device]: the field 'rpc_key' must be a text, not None"),
        ("mattr = []", "mattr = [1]", "the field 'mattr' must be a list of texts"),
        (
            "mattr = []",
            "matr = []",
            "unknown field 'matr'; known are kind, mabi, mattr, mcpu, mfloat-abi, mtriple",
        ),
        ('name = "', 'cores = 0\nname = "', "'cores' must be a whole number of at least 1, not 0"),
        ('name = "', 'cores = true\nname = "', "'cores' must be a whole number of at least 1, not True"),
    ],
)
def test_a_wrong_file_is_answered_with_the_field_at_fault(old, new, message):
    assert old in FILE
    with pytest.raises(MpqError, match=r"mine\.toml") as caught:
        parse_target(FILE.replace(old, new, 1), "mine.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dot_products_of_arm_come_with_half_floats():
    text = (Path(__file__).parents[1] / "targets" / "raspberry-pi-5.toml").read_text()
    with pytest.raises(MpqError, match=r"instruction 'dotprod' needs the features asimdhp$"):
        parse_target(text.replace('"asimdhp", ', ""), "mine.toml")


def test_a_missing_file_is_named():
    with pytest.raises(MpqError, match=r"cannot read the target file /nowhere/x\.toml"):
        load_target("/nowhere/x.toml")
