"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mpq.errors import MpqError

if TYPE_CHECKING:
    from tvm_mpq.device.machine import DeviceMachine
    from tvm_mpq.runtime.machine import Machine

ModelArgument = Annotated[Path, typer.Argument(help="The network.", metavar="MODEL.onnx")]
TargetOption = Annotated[
    str, typer.Option(metavar="NAME", help="A name of 'tvm-mpq targets', or a target's .toml file.")
]
CalibrationOption = Annotated[
    Path, typer.Option(metavar="DATA", help="An .npz, or a folder of images with labels.csv.")
]
PrecisionOption = Annotated[
    str | None, typer.Option(help="One precision for every operator.", show_default="w8a8")
]
PlanOption = Annotated[
    Path | None, typer.Option(metavar="PLAN.json", help="A precision for each operator instead.")
]
ObserverOption = Annotated[
    str, typer.Option(help="How ranges are found: minmax, percentile, mse, entropy or loss.")
]
CorrectBiasesOption = Annotated[
    bool, typer.Option("--correct-biases/--no-correct-biases", help="Undo the mean error of rounded weights.")
]
EqualizeOption = Annotated[
    bool, typer.Option("--equalize", help="Scale channels so that one grid fits all of a tensor's.")
]
LossOption = Annotated[str, typer.Option(help="cross-entropy, mse, bce, cosine, ctc, kl or module:function.")]
ProbabilitiesOption = Annotated[
    bool,
    typer.Option(
        "--probabilities",
        help="The outputs are probabilities, not logits, though the network does not end in a softmax or sigmoid.",
    ),
]
InputShapeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME:1,3,224,224", help="The shape of an input; may be given for each."),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to FILE as JSON.")
]
ThreadsOption = Annotated[int, typer.Option(help="Threads to run with.", metavar="N")]
ResizeOption = Annotated[int | None, typer.Option(metavar="PIXELS", help="Resize images to PIXELS × PIXELS.")]
MeanOption = Annotated[
    str, typer.Option(metavar="M[,M,M]", help="x = (value - MEAN) · SCALE: one mean, or one a channel.")
]
ScaleOption = Annotated[str, typer.Option(metavar="S[,S,S]", help="One scale, or one a channel.")]
LimitOption = Annotated[
    int | None, typer.Option(metavar="N", help="Use N samples, spread evenly over the data.")
]
RpcOption = Annotated[
    str | None,
    typer.Option("--rpc", metavar="HOST:PORT", help="Run on the device whose rpc-server is there."),
]
RpcTrackerOption = Annotated[
    str | None,
    typer.Option("--rpc-tracker", metavar="HOST:PORT", help="Run on a device of this RPC tracker."),
]
RpcKeyOption = Annotated[
    str | None, typer.Option("--rpc-key", metavar="KEY", help="Which of the tracker's devices.")
]
RpcTimeoutOption = Annotated[
    float,
    typer.Option("--rpc-timeout", metavar="SECONDS", help="Give up a device that is silent for longer."),
]


def parse_machine(rpc: str | None, tracker: str | None, key: str | None, seconds: float) -> Machine:
    """Where to run: this machine, or the device that the options name. Raises MpqError for options that do not fit."""
    from tvm_mpq.runtime.machine import ThisMachine

    return parse_device(rpc, tracker, key, seconds) or ThisMachine()


def parse_device(
    rpc: str | None, tracker: str | None, key: str | None, seconds: float
) -> DeviceMachine | None:
    """The device that the options name, None where they name none. Raises MpqError for options that do not fit."""
    if rpc is not None and (tracker is not None or key is not None):
        raise MpqError("give --rpc, or --rpc-tracker and --rpc-key, not both")
    if (tracker is None) != (key is None):
        raise MpqError("--rpc-tracker and --rpc-key belong together")
    if not 0 < seconds < math.inf:
        raise MpqError(f"--rpc-timeout needs seconds above 0, not {seconds}")
    from tvm_mpq.device.address import parse_address
    from tvm_mpq.device.connection import Place
    from tvm_mpq.device.machine import DeviceMachine

    if rpc is not None:
        machine = DeviceMachine(Place(parse_address("--rpc", rpc)), seconds)
    elif tracker is not None:
        machine = DeviceMachine(Place(parse_address("--rpc-tracker", tracker), key or ""), seconds)
    else:
        return None
    _at_end.append(machine.close)
    return machine


_at_end: list[Callable[[], None]] = []


def give_back() -> None:
    """Give back the devices that the command had: what is still held of it must not keep them from others."""
    while _at_end:
        _at_end.pop()()


def plan_or_precision(plan: Path | None, precision: str | None) -> None:
    """Raises MpqError where both are given."""
    if plan is not None and precision is not None:
        raise MpqError("give --plan or --precision, not both")


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """``"127"`` → (127.0,) and ``"1,2,3"`` → (1.0, 2.0, 3.0); raises MpqError for anything else."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise MpqError(f"{option} needs one number or three with commas between, not {text!r}")
    return numbers


def parse_input_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """``["data:1,3,224,224"]`` → {"data": (1, 3, 224, 224)}; raises MpqError for anything else."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        # Names may hold colons ("input:0"); a shape never does.
        name, colon, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not colon or not name or not shape or min(shape) < 1:
            raise MpqError(f"--input-shape needs NAME:1,3,224,224 with sizes of at least 1, not {text!r}")
        if name in shapes:
            raise MpqError(f"--input-shape gives the input {name!r} twice")
        shapes[name] = shape
    return shapes


def check_output_file(option: str, path: Path | None) -> None:
    """Raise MpqError now, and not after minutes of work, if ``path`` cannot be written."""
    if path is None:
        return
    if path.is_dir():
        raise MpqError(f"{option} {path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise MpqError(f"{option} {path}: there is no folder {path.parent}")
