"""What a thread block brings to shared memory before it multiplies, in turn with that or one step ahead of it.

In turn, each step waits for what it loads:

    for step:  shared = converted(memory[step]);  multiply

Ahead, what the next step needs is under way to registers meanwhile, and is converted once it is there:

    held = memory[0]
    for step:  shared = converted(held);  held = memory[step + 1];  multiply

Either way the threads meet before shared memory is written and after.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

from tvm_mpq.kernels.emitting import When

MOST_UNROLLED = 16
"""Turns of a loop over a thread's parts that are unrolled. All their loads go ahead of their stores."""


class Stage(ABC):
    """One array in shared memory. ``count`` parts of it are shared evenly by the block's ``threads``.

    ``held`` are dtype and lanes of the vectors that a part is in registers.
    """

    unrolled = MOST_UNROLLED
    """Turns that :meth:`fill` unrolls."""

    def __init__(self, count: int, threads: int, thread: Expr, held: Sequence[tuple[str, int]]) -> None:
        self.count, self.threads, self.thread = count, threads, thread
        self.held = tuple(held)
        self._registers: list[Buffer] = []

    @property
    def turns(self) -> int:
        """Parts of a thread."""
        return -(-self.count // self.threads)

    @abstractmethod
    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """What memory has for a part, as ``held`` says."""

    @abstractmethod
    def store(self, part: Expr, values: list[Expr]) -> None:
        """Convert what was loaded, to shared memory."""

    def fill(self, step: Expr) -> None:
        """All parts of ``step``, from memory to shared memory."""
        with Each(self.count, self.threads, self.thread, self.unrolled) as part:
            self.store(part, [T.bind(value) for value in self.load(part, step)])

    def reserve(self) -> None:
        """The registers that :meth:`hold` needs."""
        self._registers = [
            T.alloc_buffer((self.turns * lanes,), dtype, scope="local", layout=None)
            for dtype, lanes in self.held
        ]

    def hold(self, step: Expr) -> None:
        """All parts of ``step``, from memory to registers."""
        each = Each(self.count, self.threads, self.thread)
        with each as part:
            for registers, value, at in zip(
                self._registers, self.load(part, step), self._places(each.turn), strict=True
            ):
                T.buffer_store(registers, value, [at])

    def put(self) -> None:
        """What is held, to shared memory."""
        each = Each(self.count, self.threads, self.thread)
        with each as part:
            places = self._places(each.turn)
            values = [registers[at] for registers, at in zip(self._registers, places, strict=True)]
            self.store(part, [T.bind(value) for value in values])

    def _places(self, turn: Expr) -> list[Expr]:
        return [T.ramp(turn * lanes, 1, lanes) if lanes > 1 else turn for _, lanes in self.held]


def run_stages(stages: Sequence[Stage], steps: int, ahead: bool, multiply: Callable[[], None]) -> None:
    """``multiply`` what is in shared memory, for each of ``steps``; ``ahead``: the next one is loaded meanwhile."""
    if not ahead or steps == 1:
        with T.serial(0, steps) as step:
            for stage in stages:
                stage.fill(step)
            multiply()
        return
    for stage in stages:
        stage.reserve()
        stage.hold(T.int32(0))
    with T.serial(0, steps) as step:
        for stage in stages:
            stage.put()
        with When([step + 1 < steps]):
            for stage in stages:
                stage.hold(step + 1)
        multiply()


class Each:
    """The numbers below ``count``, shared evenly by ``threads``; ``turn`` counts those of a thread."""

    def __init__(self, count: int, threads: int, t: Expr, most: int = MOST_UNROLLED) -> None:
        self.count, self.threads, self.t = count, threads, t
        turns = -(-count // threads)
        # All turns' loads go ahead of their stores, each with registers of its own: more would not be left.
        self.loop = T.unroll(0, turns) if turns <= most else T.serial(0, turns)

    def __enter__(self) -> Expr:
        self.turn = self.loop.__enter__()
        index = self.turn * self.threads + self.t
        self.guard = When([] if self.count % self.threads == 0 else [index < self.count])
        self.guard.__enter__()
        return T.bind(index)

    def __exit__(self, *error: object) -> None:
        self.guard.__exit__(*error)
        self.loop.__exit__(*error)
