"""The process of a relay (:mod:`tvm_mpq.device.relay`); it needs Python alone.

    python relay_process.py HOST PORT SECONDS

connects to HOST:PORT and prints the port of the loopback address that stands for it, or ``error …``. On its standard
input it takes lines ``limit SECONDS`` and ``free``. When the connection ends it prints why.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

_CHUNK = 1 << 18
_STDIN = 0


def relay(host: str, port: int, seconds: float) -> str:
    """Pass bytes until an end closes or a limit is over; gives the reason."""
    far = socket.create_connection((host, port), timeout=seconds)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(seconds)
    print(listener.getsockname()[1], flush=True)
    near = listener.accept()[0]
    for end in (near, far):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # What waits to be sent to each end: an end that takes nothing must not keep the limit from being seen.
    waiting = {near: b"", far: b""}
    other = {near: far, far: near}
    limit, deadline = seconds, time.monotonic() + seconds
    commands = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return f"it gave no answer within {limit:.3g} s"
        reading: list[socket.socket | int] = [end for end in other if not waiting[other[end]]]
        writing = [end for end, content in waiting.items() if content]
        readable, writable, _ = select.select([*reading, _STDIN], writing, [], min(left, 1e6))
        if _STDIN in readable:
            said = os.read(_STDIN, 4096)
            if not said:
                return "the connection was closed"
            *lines, commands = (commands + said).split(b"\n")
            for line in lines:
                limit = float(line.split()[1]) if line.startswith(b"limit") else 1e9
                deadline = time.monotonic() + limit
        for end in other:
            if end in readable:
                content = end.recv(_CHUNK)
                if not content:
                    return "it closed the connection" if end is far else "the connection was closed"
                waiting[other[end]] += content
            if end in writable and waiting[end]:
                waiting[end] = waiting[end][end.send(waiting[end]) :]


if __name__ == "__main__":
    try:
        print(relay(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])), flush=True)
    except (ConnectionResetError, BrokenPipeError):
        print("it closed the connection", flush=True)
    except OSError as error:
        print("error", error.strerror or error or type(error).__name__, flush=True)
    except KeyboardInterrupt:
        pass
