"""Where a compiled module keeps its shared arrays, read from its symbol table."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

DYNAMIC = "buf_dyn_shmem"
"""What TVM calls dynamic shared memory."""

_LOCAL = re.compile(r"_Z(GV)?Z(\d+)(\w+)")


@dataclass(frozen=True)
class SharedSymbol:
    """A shared array of a kernel: begin and end as offsets in the module's thread-local block, bytes.

    Without a name: the compiler's note that an array of a class has been initialized.
    """

    kernel: str
    name: str
    begin: int
    end: int


def shared_symbols(library: Path) -> tuple[list[SharedSymbol], int]:
    """The shared arrays of a compiled module, and the offset of dynamic shared memory."""
    listing = subprocess.run(["nm", "-S", str(library)], capture_output=True, text=True, check=True).stdout
    found, dynamic = [], None
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) != 4:
            continue
        begin, size, name = int(fields[0], 16), int(fields[1], 16), fields[3]
        if name == DYNAMIC:
            dynamic = begin
        local = _LOCAL.match(name)
        if local is not None:
            # _ZZ <length> <function> E <length> <variable>: a variable in a function of C linkage.
            length = int(local[2])
            kernel, rest = local[3][:length], local[3][length:]
            variable = re.match(r"E(\d+)(\w+)", rest)
            if variable is not None:
                label = "" if local[1] else variable[2][: int(variable[1])]
                found.append(SharedSymbol(kernel, label, begin, begin + size))
    if dynamic is None:
        raise AssertionError(f"{DYNAMIC} is missing in {library}")
    return found, dynamic
