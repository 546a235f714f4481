"""LLVM's assembly, spelled for GNU's assembler and kept clear of what Bochs 3.0 does wrongly."""

from __future__ import annotations

import re

_DEBUG = re.compile(r"^\s*\.(file|loc)\s.*\n", re.MULTILINE)
_INSERT = re.compile(r"^\tvpinsrb\t(.*\()", re.MULTILINE)
_SHIFT = re.compile(r"^\t(kshift[lr]w)\t\$15, (%k\d), (%k\d)$", re.MULTILINE)
_GATHER = re.compile(
    r"^\t(?P<name>v\w*gather\w+)\t(?P<base>[^\n]*,)%(?P<width>[xyz])mm(?P<index>1[6-9]|2\d|3[01])"
    r"(?P<scale>[^\n]*\), %[xyz]mm(?P<out>\d+) \{%k\d\})$",
    re.MULTILINE,
)


def for_bochs(assembly: str) -> str:
    """The same program.

    Bochs takes the source of vpinsrb for two bytes and so doubles a displacement that EVEX packs into one byte:
    the longer displacement is asked for. It refuses gathers whose index is one of the upper sixteen registers:
    the index is moved to a lower one, which ``spare`` (machine.s) keeps meanwhile. It shifts everything out of a
    16-bit mask that is shifted by 15: it is shifted twice. Debug information goes.
    """
    assembly = _INSERT.sub(r"\t{disp32} vpinsrb\t\1", _DEBUG.sub("", assembly))
    assembly = _SHIFT.sub(r"\t\1\t$14, \2, \3\n\t\1\t$1, \3, \3", assembly)
    return _GATHER.sub(_with_lower_index, assembly)


def _with_lower_index(found: re.Match[str]) -> str:
    lower = 1 if found["out"] == "0" else 0
    return (
        f"\tvmovdqu64\t%zmm{lower}, spare(%rip)\n"
        f"\tvmovdqa64\t%zmm{found['index']}, %zmm{lower}\n"
        f"\t{found['name']}\t{found['base']}%{found['width']}mm{lower}{found['scale']}\n"
        f"\tvmovdqu64\tspare(%rip), %zmm{lower}"
    )
