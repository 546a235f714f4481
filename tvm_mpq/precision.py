"""The vocabulary of precisions: how one operator stores its weights and computes.

A name says weights, granularity and activations: ``w8a8`` is 8-bit weights with one scale an output
channel and 8-bit activations; ``w4g32a32`` is 4-bit weights in groups of 32 along the reduction with
float32 activations, ``w4g32a16`` the same with activations rounded to half floats where they meet the weights (on
processors they stay float32). ``fp32``, ``fp16`` and ``bf16`` keep both in a float.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvm_mpq.errors import MpqError

_FLOATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_INTEGER = re.compile(r"w([2-8])(?:g([1-9][0-9]*))?a(8|16|32)")


@dataclass(frozen=True)
class PerChannel:
    """One weight scale for each output channel."""

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class PerGroup:
    """One weight scale for each output channel and group of ``size`` elements along the reduction."""

    size: int

    def __str__(self) -> str:
        return f"g{self.size}"


Granularity = PerChannel | PerGroup


@dataclass(frozen=True)
class Precision:
    """How one operator stores its weights and computes.

    ``weight_bits`` is 2–8, or 16/32 for a float; ``activation_bits`` is 8, or 16/32 for a float;
    ``floating`` names the float type of a precision without integer weights, else it is None.
    """

    weight_bits: int
    activation_bits: int
    granularity: Granularity = PerChannel()
    floating: str | None = None

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read a name such as ``w8a8``; raises MpqError with the known forms for anything else."""
        if text in _FLOATS:
            width = 32 if text == "fp32" else 16
            return cls(width, width, floating=_FLOATS[text])
        match = _INTEGER.fullmatch(text)
        if match is None:
            raise MpqError(
                f"unknown precision {text!r}: use fp32, fp16, bf16, or w<2-8>[g<group>]a<8|16|32>, "
                "for example w8a8, w4a8, w4g32a8, w4g32a32"
            )
        bits, group, activation = match.groups()
        granularity: Granularity = PerGroup(int(group)) if group else PerChannel()
        return cls(int(bits), int(activation), granularity)

    @property
    def group(self) -> int:
        """The size of a group of weights; 0 for a scale a channel."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else 0

    @property
    def is_float(self) -> bool:
        """Whether weights and activations both stay in a float type."""
        return self.floating is not None

    @property
    def integer_activations(self) -> bool:
        """Whether the operator reads and multiplies 8-bit activations."""
        return self.activation_bits == 8

    @property
    def half_activations(self) -> bool:
        """Whether activations may be rounded to half floats where they are multiplied."""
        return self.floating == "float16" or (self.floating is None and self.activation_bits == 16)

    @property
    def weight_only(self) -> bool:
        """Whether integer weights meet float activations."""
        return self.floating is None and not self.integer_activations

    def __str__(self) -> str:
        if self.floating is not None:
            return next(name for name, dtype in _FLOATS.items() if dtype == self.floating)
        return f"w{self.weight_bits}{self.granularity}a{self.activation_bits}"


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """``"w8a8,w4a8"`` as precisions; raises MpqError for unknown ones and for one that is named twice."""
    precisions = tuple(Precision.parse(part.strip()) for part in text.split(","))
    for place, precision in enumerate(precisions):
        if precision in precisions[:place]:
            raise MpqError(f"{precision} is named twice")
    return precisions


FP32 = Precision.parse("fp32")
FP16 = Precision.parse("fp16")
W8A8 = Precision.parse("w8a8")

SEARCHED = tuple(map(Precision.parse, ("w8a8", "w7a8", "w6a8", "w5a8", "w4a8", "w4g32a8")))
"""What a search chooses from unless it is told. Operators with weights stay out of float unless fp32 is named too."""
