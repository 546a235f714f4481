"""How two families of processors write loops and multiplications."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

_PREFIX = "{vex}"
_LEAST = 8
"""Multiplications of a loop that is worth a look."""


class Assembly(Protocol):
    """``options``: llvm-mca's; ``jump``: a branch and its label; ``comment``: what begins one.

    ``multiplications``: the products that each instruction makes, of 128 bits.
    """

    @property
    def options(self) -> Sequence[str]: ...
    @property
    def jump(self) -> str: ...
    @property
    def comment(self) -> str: ...
    @property
    def multiplications(self) -> Mapping[str, int]: ...

    def products(self, loop: list[str]) -> int:
        """How many products the multiplications of a loop make."""

    def alone(self, line: str, index: int) -> str:
        """A multiplication on operands that nothing changes, into one of twelve results."""


class Arm:
    """AArch64, 128 bits."""

    options = ("-mtriple=aarch64", "-mattr=+dotprod")
    jump = r"\s+(?:b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s*(\.\w+)"
    comment = "//"
    multiplications: Mapping[str, int] = {
        **{"sdot": 16, "usdot": 16, "sudot": 16, "usmmla": 32, "smull": 8, "smlal": 8},
        **{"fmla": 4, "fmul": 4},
    }

    def products(self, loop: list[str]) -> int:
        """Floats of 16 bits are eight."""
        return sum(
            8 if ".8h" in line and line[0] == "f" else self.multiplications[mnemonic(line)] for line in loop
        )

    def alone(self, line: str, index: int) -> str:
        kind, result = line.split()[:2]
        suffix = result.partition(".")[2].strip(",")
        operand = suffix if kind.startswith("f") else "8b" if kind.startswith("sm") else "16b"
        return f"{kind} v{index % 12}.{suffix}, v30.{operand}, v31.{operand}"


class X86:
    """x86-64 in AT&T's order, results last."""

    options = ("-mtriple=x86_64",)
    jump = r"\s+j\w+\s+(\.\w+)"
    comment = "#"
    multiplications: Mapping[str, int] = {
        **{"vpdpbusd": 16, "vpmaddubsw": 16, "vpmaddwd": 8},
        **{"vfmadd231ps": 4, "vfmadd213ps": 4, "vmulps": 4},
    }
    _registers: Mapping[str, int] = {"x": 1, "y": 2, "z": 4}

    def products(self, loop: list[str]) -> int:
        """Beside ``vpmaddubsw``, ``vpmaddwd`` widens sums and multiplies nothing."""
        kinds = list(map(mnemonic, loop))
        widened = "vpmaddubsw" in kinds
        return sum(
            self.multiplications[kind] * self._registers[self._register(line)]
            for kind, line in zip(kinds, loop, strict=True)
            if not (widened and kind == "vpmaddwd")
        )

    def alone(self, line: str, index: int) -> str:
        kind, prefix = self._register(line), _PREFIX if line.startswith(_PREFIX) else ""
        return f"{prefix} {mnemonic(line)} %{kind}mm14, %{kind}mm15, %{kind}mm{index % 12}"

    @staticmethod
    def _register(line: str) -> str:
        found = re.search(r"%([xyz])mm\d+$", line.partition("#")[0].strip())
        assert found is not None, line
        return found[1]


def mnemonic(line: str) -> str:
    """The name of an instruction, without the prefix that asks for an encoding."""
    return line.removeprefix(_PREFIX).split()[0]


def multiplications(loop: list[str], assembly: Assembly) -> list[str]:
    """Those lines of ``loop``."""
    return [line for line in loop if mnemonic(line) in assembly.multiplications]


def innermost(text: str, assembly: Assembly) -> list[str]:
    """The instructions of the loop that is densest in multiplications."""
    lines = text.splitlines()
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for place, line in enumerate(lines):
        if label := re.match(r"(\.\w+):", line):
            labels[label[1]] = place
        jump = re.match(assembly.jump, line)
        if jump and jump[1] in labels:
            body = lines[labels[jump[1]] + 1 : place + 1]
            loops.append([x.strip() for x in body if not x.strip().startswith((".", assembly.comment))])
    dense = (loop for loop in loops if len(multiplications(loop, assembly)) >= _LEAST)
    return max(dense, key=lambda loop: len(multiplications(loop, assembly)) / len(loop))
