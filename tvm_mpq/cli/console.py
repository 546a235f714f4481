"""Where commands print: tables on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tvm_mpq.files import write_beside

_WIDTH = 100


def stdout(width: int = _WIDTH) -> Console:
    """A console for results: ``width`` columns where the output goes to a file or another program."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def progress_bar() -> Progress:
    """Progress with the time left, on a terminal's stderr; nothing is printed elsewhere."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def stderr_line(text: str) -> None:
    """Print a line about what is going on, above the progress that is shown."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path | None, value: Any) -> None:
    """Write ``value`` to ``path`` as JSON, if there is a path. Infinity and NaN are no JSON: ValueError."""
    if path is not None:
        text = json.dumps(value, indent=2, allow_nan=False, default=list)
        write_beside(path, f"{text}\n".encode())
