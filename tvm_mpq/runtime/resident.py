"""How much memory a package takes when it runs, measured in a process of its own.

    python -m tvm_mpq.runtime.resident FILE THREADS

prints the growth of the process's resident set in bytes from before the package's library is loaded to
after its first run. TVM itself, the inputs and the package's bytes are in memory before. Counted are the
library, its weights as the runtime lays them out, activations, outputs, and what the run touches of TVM.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import tvm_mpq
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.session import Session, return_free_memory
from tvm_mpq.runtime.threads import run_with_threads


def resident_bytes(package: Package, threads: int) -> int:
    """The growth of resident memory, in bytes, when ``package`` is loaded and run once in a fresh process."""
    root = str(Path(tvm_mpq.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="tvm-mpq-") as folder:
        file = Path(folder) / "model.tar"
        file.write_bytes(package.to_bytes())
        done = subprocess.run(
            [sys.executable, "-m", "tvm_mpq.runtime.resident", str(file), str(threads)],
            # TVM without its compiler, as on a device: it loads in half the time.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TVM_USE_RUNTIME_LIB": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"the process that measures resident memory failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def _main(file: str, threads: int) -> None:
    import psutil

    package = Package.load(file)
    inputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in package.metadata.inputs}
    run_with_threads(threads, lambda: None)  # imports TVM and makes its thread pool
    return_free_memory()  # what reading the package left behind is not to be reused and so go uncounted
    process = psutil.Process()
    before = process.memory_info().rss
    outputs = Session(package, threads).run(inputs)
    after = process.memory_info().rss
    del outputs  # alive until here, as in the process of someone who uses them
    print(max(0, after - before))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
