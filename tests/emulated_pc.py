"""A PC of another kind than this one: boots a program of kernels and reads back what they wrote.

The emulator is Bochs, which executes AVX-512 and its relatives one instruction after the other. There is no
operating system: emulator/machine.s is all that runs beside the kernels. ``scripts/avx512-emulator`` installs it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from emulated_program import BASE, FILL, GUARD, Buffer, Program

# For each target a processor with the vector instructions that its file names, and no others: a kernel that uses
# what its target does not promise ends in an exception. cooperlake's has more: Bochs has none with BF16 alone.
PROCESSORS = {
    "x86-64-v2": "corei5_lynnfield_750",
    "haswell": "corei7_haswell_4770",
    "x86-64-v3": "corei7_haswell_4770",
    "x86-64-v4": "corei7_skylake_x",
    "cascadelake": "corei7_skylake_x, add_features=avx512vnni",
    "cooperlake": 'sapphire_rapids, exclude_features="avx_vnni, avx512fp16"',
    "znver4": 'sapphire_rapids, exclude_features="avx_vnni, avx512fp16", add_features=sse4a',
    "alderlake": 'arrow_lake, exclude_features="avx_ifma, avx_vnni_int8, avx_vnni_int16, avx_ne_convert"',
}
TASKS = 3
"""How many tasks a parallel loop is cut into: more than one, and rarely a divisor."""
_PIECE = 8 << 20
_FOLDER = Path(__file__).parent / "emulator"
_BOCHSRC = """\
config_interface: textconfig
display_library: term
cpu: model={processor}, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=2048, host=768, block_size=8192
romimage: file=rom.bin
vgaromimage: file={share}/vgabios/vgabios.bin
{images}
port_e9_hack: enabled=1
ata0: enabled=0
ata1: enabled=0
clock: sync=none
log: log.txt
panic: action=fatal
"""


def emulator() -> Path:
    """The folder that scripts/avx512-emulator fills."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tvm-mpq" / "emulator"


def require_emulator() -> None:
    """Skip, saying what to do, where there is no emulator."""
    if not (emulator() / "usr/bin/bochs-bin").exists():
        pytest.skip(
            f"no emulator in {emulator()}: run scripts/avx512-emulator to test what this machine cannot run"
        )
    for tool in ("as", "ld", "objcopy"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: apt-get install binutils")


class EmulationError(AssertionError):
    """The emulated PC, or a kernel on it, did not do what it should."""


def run_emulated(
    program: Program, outputs: list[Buffer], target: str, processor: str | None = None, timeout: float = 100
) -> list[np.ndarray]:
    """Compile the program for ``target``, boot a PC that has this target's instructions, and read ``outputs``.

    ``processor`` is another target, whose processor the PC has instead. Raises EmulationError when a kernel raises,
    executes an instruction that the processor lacks, accesses memory that is not there, or writes beside an output.
    """
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as name:
        folder = Path(name)
        images = _link(program, outputs, target, folder)
        share = emulator() / "usr/share"
        (folder / "bochsrc").write_text(
            _BOCHSRC.format(processor=PROCESSORS[processor or target], share=share, images="\n".join(images))
        )
        text = _boot(folder, timeout)
        _raise_what_stopped(text, program, folder)
        return _results(text, program, outputs)


def _link(program: Program, outputs: list[Buffer], target: str, folder: Path) -> list[str]:
    """Make rom.bin and the pieces of memory; returns the lines that load them."""
    (folder / "kernels.s").write_text(program.kernels(target))
    (folder / "host.bin").write_bytes(program.memory)
    (folder / "host.s").write_text(program.tables(outputs, TASKS))
    for source in (_FOLDER / "machine.s", folder / "host.s", folder / "kernels.s"):
        _tool(folder, "as", "-o", f"{source.stem}.o", str(source))
    script = str(_FOLDER / "machine.ld")
    _tool(
        folder,
        "ld",
        "--no-warn-rwx-segments",
        "-T",
        script,
        "-o",
        "pc.elf",
        "machine.o",
        "host.o",
        "kernels.o",
    )
    _tool(folder, "objcopy", "-O", "binary", "-j", ".rom", "pc.elf", "rom.bin")
    _tool(folder, "objcopy", "-O", "binary", "-j", ".image", "pc.elf", "image.bin")
    memory = (folder / "image.bin").read_bytes()
    # The emulator loads up to four files, each into one block of memory.
    assert len(memory) <= 4 * _PIECE, f"a program of {len(memory)} bytes is too large for the emulated PC"
    lines = []
    for number, start in enumerate(range(0, len(memory), _PIECE), 1):
        (folder / f"{number}.bin").write_bytes(memory[start : start + _PIECE])
        lines.append(f"optramimage{number}: file={number}.bin, address={BASE + start:#x}")
    return lines


def _tool(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"
    return done.stdout


def _boot(folder: Path, timeout: float) -> bytes:
    root = emulator()
    libraries = root / "usr/lib/x86_64-linux-gnu"
    (folder / "commands").write_text("continue\n")
    command = [
        *(str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)),
        *(str(root / "usr/bin/bochs-bin"), "-q", "-f", "bochsrc", "-rc", "commands"),
    ]
    environment = {
        "TERM": "vt100",
        "LTDL_LIBRARY_PATH": str(libraries / "bochs/plugins"),
        "HOME": str(folder),
    }
    with open(folder / "said", "wb") as said:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
    log = folder / "log.txt"
    words = log.read_text(errors="replace") if log.exists() else ""
    if "shutdown requested" not in words:
        raise EmulationError(f"the emulator ended with exit code {done.returncode}:\n{words[-3000:]}")
    return (folder / "said").read_bytes()


def _raise_what_stopped(text: bytes, program: Program, folder: Path) -> None:
    stopped = re.search(rb"<exception ([0-9a-f ]+)>", text)
    if stopped:
        vector, call, *stack = (int(word, 16) for word in stopped[1].split())
        # Some exceptions push an error code before the address of the instruction.
        address = stack[vector in (8, 10, 11, 12, 13, 14, 17, 21)]
        window = (f"--start-address={address}", f"--stop-address={address + 15}")
        code = _tool(folder, "objdump", "-d", "-w", *window, "pc.elf")
        at = re.search(r"^ .*", code, re.MULTILINE)
        where = at[0].strip() if at else f"{address:x}"
        raise EmulationError(f"{program.calls[call].name}: exception {vector} at {where}")
    raised = re.search(rb"<raised ([0-9a-f]+) (.*?)>\n<calls", text, re.DOTALL)
    if raised:
        raise EmulationError(f"{program.calls[int(raised[1], 16)].name}: {raised[2].decode()}")


def _results(text: bytes, program: Program, outputs: list[Buffer]) -> list[np.ndarray]:
    found = re.search(rb"<calls ([0-9a-f ]*)><bytes(.*)bytes>$", text, re.DOTALL)
    assert found, text[-2000:]
    statuses = [int(status, 16) for status in found[1].split()]
    assert statuses == [0] * len(program.calls), statuses
    arrays, start, guard = [], 0, bytes([FILL]) * GUARD
    for out in outputs:
        guarded = found[2][start : start + out.nbytes + 2 * GUARD]
        start += out.nbytes + 2 * GUARD
        if not (guarded.startswith(guard) and guarded.endswith(guard)):
            raise EmulationError(f"a kernel wrote beside its output {out}")
        arrays.append(np.frombuffer(guarded[GUARD:-GUARD], out.dtype).reshape(out.shape))
    assert start == len(found[2])
    return arrays
