"""NVIDIA's compiler: where it is, and fat binaries from CUDA source. No GPU and no driver is needed.

It contracts a·b + c to one fused operation, which is faster in fp32, and may: what makes 8-bit results has no float
addition behind a multiplication (see ``kernels.requantize``). Fast approximations of division, of square roots and of
subnormal numbers stay off.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_mpq.errors import MpqError

_MISSING = (
    "no CUDA compiler (nvcc) found: put it on PATH, or install it with 'pip install \"tvm-mpq[cuda]\"' "
    "(the packages nvidia-cuda-nvcc, nvidia-cuda-runtime and nvidia-cuda-cccl)"
)
_NO_HOST_COMPILER = "Failed to preprocess host compiler properties"
"""What nvcc says where it cannot run the C++ compiler that it leaves the processor's part of a source to."""
_FILE = "kernels.cu"

_REGISTER_LEVELS = (5, 4, 3)
"""From the assembler's default on downwards."""


def find_tool(name: str) -> str | None:
    """The path of one of CUDA's programs (``nvcc``, ``cuobjdump``, …): on PATH, else of NVIDIA's Python packages."""
    return shutil.which(name) or next(
        (str(path) for folder in _package_folders() if (path := folder / "bin" / name).is_file()), None
    )


def _package_folders() -> Iterator[Path]:
    """Where NVIDIA's Python packages put CUDA, the newest version first."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        yield from sorted(Path(place).glob("cu[0-9]*"), reverse=True)


def find_nvcc() -> str:
    """The compiler's path; raises MpqError that names what to install where there is none."""
    found = find_tool("nvcc")
    if found is None:
        raise MpqError(_MISSING)
    return found


def working_nvcc() -> str:
    """The compiler's path; raises MpqError where there is none, or no C++ compiler for it, in a tenth of a second."""
    found = find_nvcc()
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as folder:
        Path(folder, _FILE).touch()
        command = [found, "--dryrun", "--cubin", _FILE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if _NO_HOST_COMPILER in done.stderr:
        raise MpqError(
            f"the CUDA compiler {found} needs a C++ compiler beside it and cannot run one "
            f"({_complaint(done.stderr)}): install g++ (apt-get install g++)"
        )
    return found


@dataclass(frozen=True)
class Resources:
    """What the assembler says of a source's kernels, for all architectures: the most registers of a thread, bytes of
    registers that all of them together store to memory, and the most bytes of shared memory of a block.
    """

    registers: int
    spilled: int
    shared: int


def best_code(source: str, architectures: Sequence[str], nvcc: str | None = None) -> tuple[bytes, Resources]:
    """Machine code of CUDA ``source`` for all ``architectures`` (``sm_80``, …), and portable code (PTX) of the last.

    Newer GPUs of the same major version run the former, all newer ones translate the latter. Where a kernel keeps
    registers in memory it is tried again at other levels of the assembler's thrift with them, and the code of the
    fewest bytes kept so is taken. Raises MpqError without a compiler, or a C++ compiler for it, and with its first
    complaint where it fails.
    """
    command = [
        nvcc or working_nvcc(),
        "--fatbin",
        "-O3",
        "-std=c++17",
        "--threads=0",
        *_generate(architectures),
    ]
    found: list[tuple[bytes, Resources]] = []
    for level in _REGISTER_LEVELS:
        found.append(_compiled([*command, "-Xptxas", f"-v,--register-usage-level={level}"], source))
        if found[-1][1].spilled == 0:
            break
    return min(found, key=lambda each: each[1].spilled)


def _compiled(command: Sequence[str], source: str) -> tuple[bytes, Resources]:
    """What ``command`` makes of the source."""
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as folder:
        Path(folder, _FILE).write_text(source, encoding="utf-8")
        # The file's name is part of what the compiler writes: a relative one keeps the bytes the same.
        done = subprocess.run(
            [*command, "-o", "kernels.fatbin", _FILE],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        if done.returncode != 0:
            raise MpqError(f"the CUDA compiler {command[0]} failed: {_complaint(said)}")
        return Path(folder, "kernels.fatbin").read_bytes(), parse_resources(said)


def parse_resources(said: str) -> Resources:
    """From what ``ptxas -v`` prints."""

    def numbers(pattern: str) -> list[int]:
        return [int(count) for count in re.findall(pattern, said)]

    return Resources(
        max(numbers(r"Used (\d+) registers"), default=0),
        sum(numbers(r"(\d+) bytes spill stores")),
        max(numbers(r"(\d+) bytes smem"), default=0),
    )


def _generate(architectures: Sequence[str]) -> list[str]:
    numbers = sorted(int(name.removeprefix("sm_")) for name in architectures)
    codes = [f"arch=compute_{n},code=sm_{n}" for n in numbers]
    codes.append(f"arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    return [part for code in codes for part in ("-gencode", code)]


def _complaint(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [
        line for line in lines if re.search(r"\b(error|fatal|not found|no such file)\b", line, re.IGNORECASE)
    ]
    return next(iter(errors or lines), "it said nothing")
