"""The step of ``vpmaddubsw`` on 16 registers, written so that weights stay where they are: operands in memory.

Several rows of a tile multiply the same vector of weights. LLVM loads it once for all, has no register left for it
and puts results on the stack instead, in every step. A volatile load is one that it may not merge with the next: each
becomes the memory operand of its multiplication, which costs no instruction, and all results stay in registers. TVM
marks no load of a parameter volatile; a function in LLVM's own IR does, is inlined, and imported by the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr

LANES = 8
MOST_WORDS = 4
"""Of a step; codes of five bits and more give sums of so many words in int16."""


def imported() -> str:
    """LLVM IR that a kernel with these steps imports."""
    return "\n".join([_DECLARED, *(_function(words) for words in range(1, MOST_WORDS + 1)), _ATTRIBUTES])


def multiply(accumulator: Expr, activations: Sequence[Expr], weights: Expr, multiplier: None = None) -> Expr:
    """New int32x8 accumulator: plus u8×s8 products, all words' added in int16 and widened once.

    ``activations``: a word of 32 bits each, in all lanes (int32x8); ``weights``: the address of so many int8x32. There
    is no step with a ``multiplier``.
    """
    assert multiplier is None
    name = f"tvm_mpq_pmaddubsw256x{len(activations)}"
    return T.call_pure_extern(name, accumulator, *activations, weights, dtype=f"int32x{LANES}")


_DECLARED = """
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
"""
_ATTRIBUTES = 'attributes #0 = { alwaysinline nounwind "target-features"="+avx2" }\n'


def _function(words: int) -> str:
    parameters = ", ".join(f"<8 x i32> %a{word}" for word in range(words))
    lines = [
        f"define linkonce_odr hidden <8 x i32> @tvm_mpq_pmaddubsw256x{words}"
        f"(<8 x i32> %c, {parameters}, ptr %p) #0 {{"
    ]
    total = ""
    for word in range(words):
        lines += [
            f"  %p{word} = getelementptr i8, ptr %p, i64 {32 * word}",
            f"  %w{word} = load volatile <32 x i8>, ptr %p{word}, align 32",
            f"  %b{word} = bitcast <8 x i32> %a{word} to <32 x i8>",
            f"  %m{word} = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %b{word}, <32 x i8> %w{word})",
        ]
        if total:
            lines.append(f"  %t{word} = add <16 x i16> {total}, %m{word}")
        total = f"%t{word}" if word else "%m0"
    ones = ", ".join(["i16 1"] * 16)
    lines += [
        f"  %s = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> {total}, <16 x i16> <{ones}>)",
        "  %r = add <8 x i32> %c, %s",
        "  ret <8 x i32> %r",
        "}",
    ]
    return "\n".join(lines) + "\n"
