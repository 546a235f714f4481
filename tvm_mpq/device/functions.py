"""What a device does for the machine that calls it, as functions of TVM's registry. They need TVM's runtime only.

Everything but tensors goes as JSON text; a mistake comes back as ``{"error": …}``, so that its text reaches the caller
as it is and not inside a stack trace of the RPC.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tvm_mpq.cpu import cpu_features, cpu_name
from tvm_mpq.errors import MpqError
from tvm_mpq.files import sha256
from tvm_mpq.gpu import driver_device, gpu_features
from tvm_mpq.runtime.kernel_timing import measure_kernels
from tvm_mpq.runtime.package import Package
from tvm_mpq.runtime.resident import resident_bytes
from tvm_mpq.runtime.session import Session
from tvm_mpq.runtime.threads import available_threads
from tvm_mpq.runtime.tracer import Tracer
from tvm_mpq.versions import versions

PREFIX = "tvm_mpq.device."
"""What the names of all functions here begin with."""

Answer = Mapping[str, Any]


class _Opened:
    """A loaded package, the inputs it was given and the outputs of its last run."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs: dict[str, Any] = {}
        self.outputs: list[Any] = []
        self.tracer: Tracer | None = None


class Functions:
    """The functions of one connection, which has a process and a folder of its own."""

    def __init__(self) -> None:
        self._opened: list[_Opened] = []

    def describe(self) -> Answer:
        """What this machine is."""
        gpu = driver_device()
        return {
            "cpu": cpu_name(),
            "machine": os.uname().machine,
            "features": sorted(cpu_features() | gpu_features()),
            "gpu": None if gpu is None else {"name": gpu.name, "capability": gpu.capability},
            "processors": available_threads(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "free_disk": shutil.disk_usage(_folder()).free,
            "versions": versions(),
        }

    def sha256(self, name: str) -> Answer:
        """The hash of an uploaded file, and what it takes of the disk's room that is left."""
        path = _folder() / name
        return {"sha256": sha256(path.read_bytes()) if path.exists() else ""}

    def open(self, name: str, threads: int) -> Answer:
        """Load the uploaded package ``name``; gives the handle that the other functions take."""
        package = Package.load(_folder() / name)
        self._opened.append(_Opened(Session(package, threads)))
        return {"handle": len(self._opened) - 1}

    def run(self, handle: int) -> Answer:
        """Run on the inputs that were set; outputs are fetched one by one."""
        opened = self._opened[handle]
        opened.outputs = opened.session.run(opened.inputs)
        return {"outputs": len(opened.outputs)}

    def time(self, handle: int, repeat: int, warmup: int) -> Answer:
        """Seconds of each of ``repeat`` runs."""
        opened = self._opened[handle]
        return {"seconds": opened.session.time(opened.inputs, repeat, warmup).tolist()}

    def trace(self, handle: int, repeat: int, warmup: int) -> Answer:
        """The kernel calls of a run, and their seconds in each of ``repeat`` runs."""
        opened = self._opened[handle]
        if opened.tracer is None:
            opened.tracer = opened.session.tracer()
        trace = opened.tracer.trace(opened.inputs, repeat, warmup)
        return {"kernels": trace.kernels, "arguments": trace.arguments, "seconds": trace.seconds.tolist()}

    def resident(self, name: str, threads: int) -> Answer:
        """The memory that the uploaded package takes, measured in a process of its own."""
        return {"bytes": resident_bytes(Package.load(_folder() / name), threads)}

    def measure(self, request: str) -> Answer:
        """Seconds of uploaded kernels; ``request`` is a JSON list of what measure_kernels takes, the files by name."""
        names, *others = json.loads(request)
        return {"seconds": measure_kernels([str(_folder() / name) for name in names], *others)}

    def set_input(self, handle: int, name: str, tensor: Any) -> None:
        """The array of an input for the runs to come."""
        self._opened[handle].inputs[name] = tensor.numpy()

    def output(self, handle: int, index: int) -> Any:
        """An output of the last run."""
        import tvm

        return tvm.runtime.tensor(self._opened[handle].outputs[index])


def register() -> None:
    """Register the functions with TVM, for the connections that are made in processes forked from this one."""
    import tvm_ffi

    versions()  # Found once and not by each connection: that takes an emulated device most of a second.
    functions = Functions()
    for name in ("describe", "sha256", "open", "run", "time", "trace", "resident", "measure"):
        tvm_ffi.register_global_func(PREFIX + name, _answering(getattr(functions, name)), override=True)
    for name in ("set_input", "output"):
        tvm_ffi.register_global_func(PREFIX + name, getattr(functions, name), override=True)


def _answering(function: Callable[..., Answer]) -> Callable[..., str]:
    @functools.wraps(function)
    def answer(*arguments: Any) -> str:
        try:
            return json.dumps(function(*arguments))
        except (MpqError, OSError, RuntimeError) as error:
            return json.dumps({"error": " ".join(str(error).split()) or type(error).__name__})

    return answer


def _folder() -> Path:
    """Where this connection's uploads are."""
    import tvm

    return Path(str(tvm.get_global_func("tvm.rpc.server.workpath")("")))
