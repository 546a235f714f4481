"""``tvm-mpq run``: a package on given inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mpq.cli.console import stdout, write_json
from tvm_mpq.cli.options import (
    JsonOption,
    RpcKeyOption,
    RpcOption,
    RpcTimeoutOption,
    RpcTrackerOption,
    check_output_file,
    parse_machine,
)


def run(
    package: Annotated[Path, typer.Argument(help="The package.", metavar="PACKAGE")],
    inputs: Annotated[
        Path,
        typer.Option(metavar="FILE.npz", help="An array for each input, in the input's shape and dtype."),
    ],
    outputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Where to write the outputs.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads to run with; all there are by default.")
    ] = None,
    print_time: Annotated[bool, typer.Option("--print-time", help="Measure and print the latency.")] = False,
    repeat: Annotated[int, typer.Option(metavar="N", help="Runs to time.")] = 20,
    rpc: RpcOption = None,
    rpc_tracker: RpcTrackerOption = None,
    rpc_key: RpcKeyOption = None,
    rpc_timeout: RpcTimeoutOption = 300.0,
    json: JsonOption = None,
) -> None:
    """Run a package on the inputs in an .npz file, here or on a device."""
    check_output_file("--outputs", outputs)
    check_output_file("--json", json)
    from tvm_mpq.runtime.arrays import load_arrays, save_arrays
    from tvm_mpq.runtime.package import Package
    from tvm_mpq.runtime.result import Latency
    from tvm_mpq.runtime.session import check_repeat

    check_repeat(repeat)
    machine = parse_machine(rpc, rpc_tracker, rpc_key, rpc_timeout)
    loaded = Package.load(package)
    arrays = load_arrays(inputs)
    session = machine.session(loaded, threads)
    specs = loaded.metadata.outputs
    results = {spec.name: array for spec, array in zip(specs, session.run(arrays), strict=True)}
    latency = Latency.of(session.time(arrays, repeat), session.threads) if print_time else None
    if outputs is not None:
        save_arrays(outputs, results)
    console = stdout()
    for name, array in results.items():
        console.print(f"{name}: {array.dtype} {list(array.shape)}", markup=False)
    if latency is not None:
        console.print(
            f"latency of {repeat} runs, {latency.threads} thread(s): median {latency.median:.3f} ms, "
            f"p90 {latency.p90:.3f} ms, min {latency.min:.3f} ms"
        )
    write_json(
        json,
        {
            "outputs": [
                {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
                for name, array in results.items()
            ],
            "latency_ms": None if latency is None else vars(latency),
        },
    )
