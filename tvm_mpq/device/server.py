"""The server of a device, which other machines send packages to and run them with; Python and TVM's runtime suffice.

    python -m tvm_mpq.device.server [--host 127.0.0.1] [--port 9090] [--tracker HOST:PORT --key KEY]

Who can connect can run any code as the user who started it: TVM's RPC has no authentication. So it listens on the
loopback address unless told otherwise. Each connection is served by a process of its own, and the next waits.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence

from tvm_mpq.device.address import Address, parse_address
from tvm_mpq.errors import MpqError

DEFAULT_PORT = 9090
_WARNING = "anyone who can reach this address can run any code here: TVM's RPC has no authentication"


def serve(
    listen: Address,
    *,
    tracker: Address | None = None,
    key: str = "",
    public_host: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve connections on ``listen`` (port 0: any) until interrupted.

    With ``tracker`` the server offers itself there under ``key``, as ``public_host`` if that is not the address that
    the tracker sees. Raises MpqError for an address that cannot be listened on.
    """
    if (tracker is None) != (not key):
        raise MpqError("--tracker and --key belong together: a device offers itself at a tracker under a key")
    from tvm.rpc import server as tvm_server

    from tvm_mpq.device.functions import register

    # Connections are served by forked processes, which have the functions that are registered here.
    multiprocessing.set_start_method("fork", force=True)
    register()
    tvm_server.logger.setLevel(logging.ERROR)
    listener = socket.socket(tvm_server.base.get_addr_family(listen), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it: one whose other end is gone is found out, and the next is served.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        listener.bind(listen)
    except OSError as error:
        raise MpqError(f"cannot listen on {listen}: {error.strerror}") from None
    listener.listen(8)
    port = listener.getsockname()[1]
    say(f"listening on {Address(listen.host, port)}" + (f", key {key} at {tracker}" if tracker else ""))
    if not listen.is_loopback():
        say(f"warning: {_WARNING}")
    home = os.getcwd()
    while True:
        try:
            # A connection that failed leaves this process in its folder, which is gone.
            os.chdir(home)
            tvm_server._listen_loop(listener, port, key, tracker, None, public_host)
        except (RuntimeError, ConnectionError, AssertionError) as error:
            # The process of a connection crashed, or one ended in mid-word: there will be others.
            say(f"a connection failed: {' '.join(str(error).split())}")


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tvm_mpq.device.server", description="Serve this device.")
    parser.add_argument("--host", default="127.0.0.1", help=f"The address to listen on; {_WARNING}.")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--tracker", metavar="HOST:PORT")
    parser.add_argument("--key", default="")
    parser.add_argument(
        "--public-host", help="The address to be found under, if not the one the tracker sees."
    )
    options = parser.parse_args(arguments)
    try:
        serve(
            Address(options.host, options.port),
            tracker=None if options.tracker is None else parse_address("--tracker", options.tracker),
            key=options.key,
            public_host=options.public_host,
            say=lambda line: print(line, flush=True),
        )
    except MpqError as error:
        print("error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
