"""Intel AMX: eight tile registers, and the multiplication of a 16 × 64 tile of bytes by a 64 × 16 one.

Tiles are no values of TVM's or LLVM's IR here: intrinsics name them by number. Linux lets a process use them once it
has asked to, and each thread says what shape they have before it does (Intel, Architecture Instruction Set
Extensions, ch. 3). Both are functions in LLVM's own IR, which a kernel imports: it needs nothing of where it runs.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr

ROWS = 16
"""Of a tile of activations or of results."""
LANES = 16
"""Results of a row."""
MOST_BYTES = 64
"""Of a tile's row."""
TILES = 8
_CLOBBERED = "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory},~{flags}"
_PERMISSION = """
@tvm_mpq_amx_asked = linkonce_odr hidden global i32 0

define linkonce_odr hidden void @tvm_mpq_amx_ask() #0 {
entry:
  %asked = load atomic i32, ptr @tvm_mpq_amx_asked acquire, align 4
  %done = icmp ne i32 %asked, 0
  br i1 %done, label %end, label %ask
ask:
  ; arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  %r = call i64 asm sideeffect "syscall", "{_CLOBBERED}"(i64 158, i64 4131, i64 18)
  store atomic i32 1, ptr @tvm_mpq_amx_asked release, align 4
  br label %end
end:
  ret void
}

declare void @llvm.x86.ldtilecfg(ptr)
attributes #0 = { noinline nounwind "target-features"="+amx-tile,+amx-int8" }
attributes #1 = { alwaysinline nounwind "target-features"="+amx-tile,+amx-int8" }
""".replace("{_CLOBBERED}", _CLOBBERED)


def imported(words: int, rows: int, columns: int) -> str:
    """LLVM IR that a kernel imports whose steps have ``words`` words: :func:`ask` and :func:`configure`."""
    name = _name(words, rows, columns)
    depths = [ROWS] * (rows * columns) + [ROWS] * rows + [words] * columns
    widths = [MOST_BYTES] * (rows * columns) + [4 * words] * rows + [MOST_BYTES] * columns
    pad = [0] * (TILES - len(depths))
    bytes_ = [1, *([0] * 15)]
    for width in [*widths, *pad, *([0] * 8)]:
        bytes_ += [width & 255, width >> 8]
    bytes_ += [*depths, *pad, *([0] * 8)]
    text = "".join(f"\\{byte:02X}" for byte in bytes_)
    return f"""{_PERMISSION}
@{name}_shape = linkonce_odr hidden constant [64 x i8] c"{text}", align 64

define linkonce_odr hidden void @{name}() #1 {{
  call void @llvm.x86.ldtilecfg(ptr @{name}_shape)
  ret void
}}
"""


def _name(words: int, rows: int, columns: int) -> str:
    return f"tvm_mpq_amx_configure_{words}x{rows}x{columns}"


def ask() -> None:
    """Emit the question for permission, which holds for all threads of the process."""
    T.evaluate(T.call_extern("tvm_mpq_amx_ask", dtype="void"))


def configure(words: int, rows: int, columns: int) -> None:
    """Emit the shapes of this thread's tiles: results [rows × columns], then activations, then weights."""
    T.evaluate(T.call_extern(_name(words, rows, columns), dtype="void"))


def release() -> None:
    """Emit the end of this thread's use of tiles."""
    _emit("tilerelease")


def load(tile: int, address: Expr, stride: int) -> None:
    """Emit a tile's load of rows ``stride`` bytes apart."""
    _emit("tileloadd64", T.int8(tile), address, T.int64(stride))


def store(tile: int, address: Expr, stride: int) -> None:
    """Emit a tile's store to rows ``stride`` bytes apart."""
    _emit("tilestored64", T.int8(tile), address, T.int64(stride))


def multiply(result: int, activations: int, weights: int) -> None:
    """Emit results += activations (u8) × weights (s8)."""
    _emit("tdpbusd", T.int8(result), T.int8(activations), T.int8(weights))


def _emit(name: str, *arguments: Expr) -> None:
    T.evaluate(T.call_llvm_intrin(T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}"), *arguments, dtype="void"))
