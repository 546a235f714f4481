"""The command line ``tvm-mpq``: one file a sub-command, each thin over the Python calls of the same name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import typer

from tvm_mpq.cli.analyze import analyze_command
from tvm_mpq.cli.benchmark import benchmark
from tvm_mpq.cli.check_cuda import check_cuda
from tvm_mpq.cli.compile import compile_command
from tvm_mpq.cli.costs import costs
from tvm_mpq.cli.export import export
from tvm_mpq.cli.kernels import kernels
from tvm_mpq.cli.options import give_back
from tvm_mpq.cli.rpc_server import rpc_server
from tvm_mpq.cli.run import run
from tvm_mpq.cli.search import search
from tvm_mpq.cli.targets import targets
from tvm_mpq.cli.tune import tune
from tvm_mpq.errors import MpqError, MpqWarning

__all__ = ["main"]

USAGE_ERROR = 2
INTERRUPTED = 130


def _app() -> typer.Typer:
    app = typer.Typer(
        name="tvm-mpq",
        help="Compile ONNX networks with each operator at its own precision, and measure the result.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command("compile")(compile_command)
    app.command("analyze")(analyze_command)
    app.command("run")(run)
    app.command("benchmark")(benchmark)
    app.command("tune")(tune)
    app.command("costs")(costs)
    app.command("search")(search)
    app.command("targets")(targets)
    app.command("export")(export)
    app.command("check-cuda")(check_cuda)
    app.command("kernels")(kernels)
    app.command("rpc-server")(rpc_server)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` by default) and return its exit code.

    What a user can mend (:class:`MpqError`, a wrong option) ends in one line on stderr and code 2.
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", MpqWarning)
            code = _app()(args, prog_name="tvm-mpq", standalone_mode=False)
    except MpqError as error:
        return _fail(str(error))
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (tvm-mpq --help lists commands and options)")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        give_back()
    return code if isinstance(code, int) else 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print("note:" if isinstance(message, MpqWarning) else "warning:", message, file=sys.stderr)


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return USAGE_ERROR
