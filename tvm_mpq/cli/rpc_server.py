"""``tvm-mpq rpc-server``: let other machines run packages on this one."""

from __future__ import annotations

from typing import Annotated

import typer

from tvm_mpq.cli.console import stdout


def rpc_server(
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The address to listen on. Who can reach it can run any code here: there is no authentication.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="The port to listen on; 0: any.")] = 9090,
    tracker: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Offer this device at an RPC tracker.")
    ] = None,
    key: Annotated[str, typer.Option(metavar="KEY", help="What it is called there.")] = "",
    public_host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="The address to be found under, if not the one the tracker sees."
        ),
    ] = None,
) -> None:
    """Let other machines run packages on this one, until interrupted; TVM's runtime is enough here."""
    from tvm_mpq.device.address import Address, parse_address
    from tvm_mpq.device.server import serve

    serve(
        Address(host, port),
        tracker=None if tracker is None else parse_address("--tracker", tracker),
        key=key,
        public_host=public_host,
        say=lambda line: stdout().print(line, markup=False, soft_wrap=True),
    )
