"""The table of instructions: how each instruction set multiplies, as one small record a row.

The templates read nothing else about a machine. A new instruction set is a new row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm_mpq.errors import MpqError
from tvm_mpq.gpu import CUDA
from tvm_mpq.kernels import bfloat16_step, memory_operand, neon, neon_matrix
from tvm_mpq.kernels.tensor_intrinsics import Step, register


@dataclass(frozen=True)
class Intrinsic:
    """How one multiply-accumulate step is done.

    ``activation`` is the dtype that the step reads (activations of another dtype are staged first), ``weight`` and
    ``accumulator`` the others; one step makes ``lanes`` results from ``group`` products each. ``family`` names the
    tensor intrinsic, or is None where LLVM finds the instruction itself in vectorized code (fused multiply-add).
    ``registers`` counts the vector registers that hold a tile. The activations of a step come in ``words`` of 32 bits.
    ``rows``: the rows of activations that a step multiplies at once, whose words (of 64 bits then) are staged by turns.
    ``nibbles``: weights of up to four bits lie two in a byte and are unpacked in registers. ``multiplied``: the sum of
    a step is multiplied by an integer of its group of weights.
    """

    name: str
    activation: str
    weight: str
    accumulator: str
    lanes: int
    group: int
    registers: int
    family: str | None = None
    words: int = 1
    nibbles: bool = False
    multiplied: bool = False
    rows: int = 1

    @property
    def per_word(self) -> int:
        """Products a lane makes with one broadcast word of activations."""
        return self.group // self.words

    def tensor_intrinsic(self) -> str | None:
        """The registered name for ``Schedule.tensorize``, or None when the step is plain vector code."""
        if self.family is None:
            return None
        if self.family == "vdpbf16ps":
            return bfloat16_step.register()
        if self.family == neon.MATRIX:
            return neon_matrix.register(neon_matrix.MatrixStep(self.words, self.nibbles, self.multiplied))
        return register(self._step(self.family))

    @property
    def is_avx2(self) -> bool:
        """Whether results are int32 in AVX2's registers."""
        return self.lanes == 8 and self.family in ("pmaddubsw", "pmaddwd", "vpdpbusd")

    @property
    def from_memory(self) -> bool:
        """Whether each multiplication of the step reads its weights from memory."""
        return self.family == "pmaddubsw" and self._step(self.family).from_memory

    @property
    def imported(self) -> str | None:
        """LLVM IR that a kernel with this step imports."""
        if self.family == "vdpbf16ps":
            return bfloat16_step.IMPORTED
        return memory_operand.imported() if self.from_memory else None

    def _step(self, family: str) -> Step:
        return Step(
            family,
            self.activation,
            self.lanes,
            self.per_word,
            self.words,
            self.nibbles,
            self.multiplied,
            "int8" if self.nibbles else self.weight,
        )


def _float(name: str, lanes: int, registers: int) -> Intrinsic:
    return Intrinsic(name, "float32", "float32", "float32", lanes, 1, registers)


NEON = ("i8mm", "dotprod", "neon")
"""Instruction sets of 64-bit ARM."""
FLOAT = {
    "amx": _float("fma512", 16, 32),
    "avx512bf16": _float("fma512", 16, 32),
    "avx512vnni": _float("fma512", 16, 32),
    "avx512": _float("fma512", 16, 32),
    "avxvnni": _float("fma256", 8, 16),
    "avx2": _float("fma256", 8, 16),
    "generic": _float("mul128", 4, 16),
    "i8mm": _float("fmla128", 4, 32),
    "dotprod": _float("fmla128", 4, 32),
    "neon": _float("fmla128", 4, 32),
    "neon32": _float("fmla128", 4, 16),
    "portable": _float("mul128", 4, 16),
    **dict.fromkeys(CUDA, _float("ffma", 16, 0)),
}
INTEGER = {
    # Tiles are another algorithm (see ``amx``); what they do not fit takes the instruction for vectors.
    "amx": Intrinsic("vpdpbusd512", "uint8", "int8", "int32", 16, 4, 32, "vpdpbusd"),
    "avx512bf16": Intrinsic("vpdpbusd512", "uint8", "int8", "int32", 16, 4, 32, "vpdpbusd"),
    "avx512vnni": Intrinsic("vpdpbusd512", "uint8", "int8", "int32", 16, 4, 32, "vpdpbusd"),
    "avx512": Intrinsic("pmaddwd512", "int16", "int8", "int32", 16, 2, 32, "pmaddwd"),
    "avxvnni": Intrinsic("vpdpbusd256", "uint8", "int8", "int32", 8, 4, 16, "vpdpbusd"),
    "avx2": Intrinsic("pmaddwd256", "int16", "int8", "int32", 8, 2, 16, "pmaddwd"),
    # Plain vector code that any LLVM target takes; LLVM picks the widening multiply.
    "generic": Intrinsic("mul128", "int16", "int8", "int32", 4, 1, 16),
    "i8mm": Intrinsic("usdot128", "uint8", "int8", "int32", 4, 4, 32, "usdot"),
    "dotprod": Intrinsic("sdot128", "int8", "int8", "int32", 4, 4, 32, "sdot"),
    "neon": Intrinsic("smull128", "int8", "int8", "int32", 4, 4, 32, "smull2", 2),
    "neon32": Intrinsic("smull128", "int8", "int8", "int32", 4, 4, 16, "vmull2", 2),
    "portable": Intrinsic("mul128", "int16", "int8", "int32", 4, 1, 16),
    # Tensor cores multiply 16×16 by 16×16: a block of columns and a step of the reduction are as long.
    **dict.fromkeys(CUDA, Intrinsic("imma", "int8", "int8", "int32", 16, 16, 0, "imma")),
}

MATRIX = {"i8mm": Intrinsic("usmmla128", "uint8", "int8", "int32", 4, 8, 32, neon.MATRIX, rows=2)}
"""Where two rows or more are multiplied at once."""

# Winograd's transformed weights need int16: machines with instructions for four bytes are faster direct.
WINOGRAD_INTEGER = {
    "avx512": Intrinsic("pmaddwd512", "int16", "int16", "int32", 16, 2, 32, "pmaddwd"),
    "avx2": Intrinsic("pmaddwd256", "int16", "int16", "int32", 8, 2, 16, "pmaddwd"),
}


HALF = {
    **dict.fromkeys(
        (("amx", "bfloat16"), ("avx512bf16", "bfloat16")),
        Intrinsic("vdpbf16ps512", "bfloat16", "bfloat16", "float32", 16, 2, 32, "vdpbf16ps"),
    ),
    ("dotprod", "float16"): Intrinsic("fmlah128", "float16", "float16", "float32", 8, 8, 32, neon.HALF, 8),
    ("i8mm", "float16"): Intrinsic("fmlah128", "float16", "float16", "float32", 8, 16, 32, neon.HALF, 16),
    **dict.fromkeys(
        ((instruction, "float16") for instruction in CUDA),
        Intrinsic("hmma", "float16", "float16", "float32", 16, 16, 0, "hmma"),
    ),
}
"""Where weights of 16 bits meet activations rounded to the same.

ARM's add up to so many products in half floats before the sum is widened. Sixteen have 1.25 times the error of eight,
for a fifth fewer cycles on Neoverse V1, but 7 % at most on Cortex-A76.
"""
HALF_CODES = dict.fromkeys(CUDA, Intrinsic("hmma", "float16", "int8", "float32", 16, 16, 0, "hmma"))
"""Where integer weights are made half floats to meet activations rounded to those."""
_NARROWER = {**dict.fromkeys(("amx", "avx512bf16", "avx512vnni"), "avxvnni"), "avx512": "avx2"}
"""Half as wide on the same machine, for channel counts that fill no wide vector."""


def intrinsic(instruction: str, weight: str, channels: int, rows: int = 1) -> Intrinsic:
    """The row for a target's ``instruction``, the weights' dtype ("int8" or "float32"), and so many output ``channels``
    and ``rows``.

    Where the channels fill only half-wide vectors, it is the half-wide row with the machine's registers. Raises
    MpqError for an instruction that the table does not have.
    """
    table = FLOAT if weight == "float32" else INTEGER
    if instruction not in table:
        raise MpqError(f"unknown instruction {instruction!r} in the target: use one of {', '.join(table)}")
    row = table[instruction]
    if table is INTEGER and rows > 1 and instruction in MATRIX:
        return MATRIX[instruction]
    if channels % row.lanes != 0 and instruction in _NARROWER:
        narrow = table[_NARROWER[instruction]]
        if channels % narrow.lanes == 0:
            return replace(narrow, registers=row.registers)
    return row


def words_that_fit(bits: int) -> int:
    """How many words' int16 pair sums of u8 × ``bits``-bit codes (±(2^(bits−1) − 1)) stay within ±32767."""
    return 32767 // (2 * 255 * (2 ** (bits - 1) - 1))


def narrow_intrinsic(row: Intrinsic, bits: int, weight_group: int, run: int, int16_words: int) -> Intrinsic:
    """The row for codes of ``bits`` bits in place of ``row`` for 8, or ``row`` where nothing is gained.

    ``weight_group``: codes share an integer factor in groups of so many (0: none); ``run``: the elements of a kernel
    row of the reduction, which each row pads to its own group; ``int16_words``: how many words of the int8 codes
    (multiplied, where they have factors) can be added in int16. Without VNNI one such word allows ``pmaddubsw``, and
    more of them save widening. Up to 4 bits stay packed in memory. A row that cannot apply the factors takes the
    codes multiplied.
    """
    if row.family is None:
        return row
    if row.family in ("imma", "hmma"):
        if bits > 4 or weight_group % row.group:
            return row
        return replace(row, weight="uint8", words=2, nibbles=True, multiplied=bool(weight_group))
    if row.family in neon.FAMILIES:
        return _narrow_neon(row, bits, weight_group, run)
    saturating = row.family == "pmaddwd"
    packed = [w for w in (2, 4, 8) if bits <= 4 and weight_group % (4 * w) == 0 and (weight_group or w < 8)]
    if saturating:
        packed = [w for w in packed if w <= words_that_fit(bits)]
    if packed:
        # An instruction for each word, and one to widen or multiply their sum.
        overhead = 1.0 if saturating or weight_group else 0.0
        words = min(packed, key=lambda w: -(-run // (4 * w)) * 4 * w * (1 + overhead / w))
        family = "pmaddubsw" if saturating else row.family
        return _of_words(row, family, words, nibbles=True, multiplied=bool(weight_group))
    fitting = [w for w in (1, 2, 4) if w <= int16_words]
    if not saturating or not fitting:
        return row
    words = min(fitting, key=lambda w: -(-run // (4 * w)) * 4 * w * (1 + 1 / w))
    return _of_words(row, "pmaddubsw", words)


def int4_fits(row: Intrinsic) -> bool:
    """Whether int4 tensor cores can multiply the codes of ``row``: of four bits, and no factors make them bytes."""
    return row.family == "imma" and row.nibbles and not row.multiplied


def int4_intrinsic(row: Intrinsic) -> Intrinsic:
    """The row for the same by int4 tensor cores.

    Activations are multiplied as they are, their halves apart (see ``cuda.int4_product``).
    """
    return replace(row, name="imma4", activation="uint8", family="imma4")


def _narrow_neon(row: Intrinsic, bits: int, weight_group: int, run: int) -> Intrinsic:
    """The row whose steps pad least what they add up, wide ones first: they load least."""
    assert row.family is not None
    per_word = row.per_word
    # More words of 64 bits leave few registers for results, which pays where a multiplication follows each step.
    most = 4 // row.rows
    packed = [
        w for w in (4, 2) if bits <= 4 and weight_group % (per_word * w) == 0 and (weight_group or w <= most)
    ]
    long = row.family[:-1] if row.family[-1].isdigit() else ""
    # Codes that were multiplied by their groups' factors are as large as any.
    sums = neon.sums_of(bits if packed or not weight_group else 8)
    fitting = packed or [w for w in ((4, 2) if long else (4, 2, 1)) if w <= most and (w <= sums or not long)]
    words = min(fitting, key=lambda w: -(-run // (per_word * w)) * per_word * w * (1 + 0.1 / w))
    return replace(
        row,
        weight="uint8" if packed else "int8",
        group=per_word * words,
        family=f"{long}{min(sums, words)}" if long else row.family,
        words=words,
        nibbles=bool(packed),
        multiplied=bool(packed and weight_group),
    )


def float_intrinsic(row: Intrinsic, weight: str, run: int) -> Intrinsic:
    """The row for ``weight``s of floats, ``run`` elements of the reduction in a kernel row."""
    if row.name == "fmla128" and run >= neon.LANES:
        return replace(row, weight=weight, group=neon.LANES, family="fmla", words=neon.LANES)
    return replace(row, weight=weight)


def _of_words(
    row: Intrinsic, family: str, words: int, nibbles: bool = False, multiplied: bool = False
) -> Intrinsic:
    return replace(
        row,
        name=f"{family}{32 * row.lanes}",
        activation="uint8",
        weight="uint8" if nibbles else "int8",
        group=4 * words,
        family=family,
        words=words,
        nibbles=nibbles,
        multiplied=multiplied,
    )


def half_intrinsic(instruction: str, weight: str, channels: int, run: int) -> Intrinsic | None:
    """The row for ``weight``s of 16 bits that rounds activations too, or None where there is none or it pays less.

    ``channels`` of a group, and ``run`` elements of the reduction in a kernel row, are padded to whole vectors.
    """
    row = HALF.get((instruction, weight))
    if row is None or row.family != neon.HALF:
        return row

    def cost(lanes: int, words: int, widening: float) -> float:
        return -(-channels // lanes) * -(-run // words) * (words + widening)

    best = min((w for w in (8, 16) if w <= row.words), key=lambda w: cost(row.lanes, w, neon.HALF_WIDENING))
    if cost(row.lanes, best, neon.HALF_WIDENING) >= cost(neon.LANES, neon.LANES, 0.0):
        return None
    return replace(row, group=best, words=best)


def winograd_intrinsic(instruction: str, in_dtype: str) -> Intrinsic | None:
    """The row for a Winograd kernel on inputs of ``in_dtype``, or None where the direct kernel is faster."""
    if in_dtype == "uint8" or instruction in CUDA:
        return WINOGRAD_INTEGER.get(instruction)
    return FLOAT.get(instruction)
