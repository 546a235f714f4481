"""Convolution and matrix multiplication on tensor cores, as one program: 16×16×16 fragments of int8 or float16.

The input is unfolded to a matrix on the way (NHWC, see ``convolution``): a thread block makes a tile of it at a time in
shared memory, beside the weights of its columns, and each warp multiplies fragments of both.

    for step in reduction / depth:
        shared a[rows, depth·16] = patches: x − 128 as int8, or x rounded to float16; the zero-point, or 0, in padding
        shared b[columns / 16, depth, 16 columns, 16] = weights, unpacked (and times their groups' factors)
        acc += a · b                                  (wmma: int32, or float32, sums)
    shared c = acc;  out = c + bias, requantized, or rescaled to float, or activated

Rows, columns and the reduction are padded to whole fragments, so that every shape runs here. Sums of int8 are exact.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.cuda.block_program import BlockProgram, Problem, all_of, shared, span, vector
from tvm_mpq.kernels.cuda.patches import vector_of
from tvm_mpq.kernels.cuda.tile import FRAGMENT, WARP, CudaTile
from tvm_mpq.kernels.cuda.words import codes_of_nibbles
from tvm_mpq.kernels.neon import OFFSET
from tvm_mpq.kernels.tensor_intrinsics import NIBBLE_OFFSET

_AREA = FRAGMENT * FRAGMENT
_SIZES = (FRAGMENT, FRAGMENT, FRAGMENT)
_PAD = {"int8": 32, "float16": 8}
"""Elements that keep what is written to ``a`` at a time from meeting in the same banks of shared memory."""
_NO_CODES = NIBBLE_OFFSET * 0x11111111


def tensor_core(problem: Problem, tile: CudaTile) -> PrimFunc:
    """The kernel; parameters are those of :func:`tvm_mpq.kernels.convolution.convolution`."""
    return _TensorCore(problem, tile).emit()


class _TensorCore(BlockProgram):
    def __init__(self, problem: Problem, tile: CudaTile) -> None:
        super().__init__(problem, tile)
        self.depth = tile.depth * FRAGMENT
        # Fragments must begin at 32 bytes: those of bytes lie one after the other, with all rows of one depth together.
        self.by_depth = self.row.activation == "int8"
        pad = _PAD[self.row.activation]
        self.stride = FRAGMENT if self.by_depth else self.depth + pad
        self.depth_stride = tile.rows * FRAGMENT + pad if self.by_depth else FRAGMENT
        self.a_length = tile.depth * self.depth_stride if self.by_depth else tile.rows * self.stride

    def multiply(self) -> None:
        """By fragments, each warp its own."""
        tile, dtype = self.tile, self.row.activation
        self.a = shared(self.a_length, dtype)
        self.b = shared(tile.columns * self.depth, dtype)
        rows, columns = tile.fragments
        warp = self.t // WARP
        warp_row = warp // tile.warp_columns * (rows * FRAGMENT)
        warp_column = warp % tile.warp_columns * (columns * FRAGMENT)
        acc = _fragments(rows * columns, self.row.accumulator, "accumulator")
        left = _fragments(rows, dtype, "matrix_a")
        right = _fragments(columns, dtype, "matrix_b")
        zero = T.float32(0.0)
        for each in range(rows * columns):
            _call(T.tvm_fill_fragment(acc.data, *_SIZES, each, zero))
        with T.serial(0, self.steps // tile.depth) as step:
            self._stage_patches(step)
            self._stage_weights(step)
            for k in range(tile.depth):
                for i in range(rows):
                    at = (warp_row + i * FRAGMENT) * self.stride + k * self.depth_stride
                    source = self.a.access_ptr("r", offset=at)
                    _call(T.tvm_load_matrix_sync(left.data, *_SIZES, i, source, self.stride, "row_major"))
                for j in range(columns):
                    at = ((warp_column // FRAGMENT + j) * tile.depth + k) * _AREA
                    source = self.b.access_ptr("r", offset=at)
                    _call(T.tvm_load_matrix_sync(right.data, *_SIZES, j, source, FRAGMENT, "col_major"))
                for i in range(rows):
                    for j in range(columns):
                        at = i * columns + j
                        _call(T.tvm_mma_sync(acc.data, at, left.data, i, right.data, j, acc.data, at))
        for i in range(rows):
            for j in range(columns):
                at = (warp_row + i * FRAGMENT) * self.c_stride + warp_column + j * FRAGMENT
                target = self.c.access_ptr("w", offset=at)
                _call(
                    T.tvm_store_matrix_sync(
                        acc.data, *_SIZES, i * columns + j, target, self.c_stride, "row_major"
                    )
                )

    def _stage_patches(self, step: Expr) -> None:
        v = vector_of(self.shape, 16 if self.integer else 4)
        per_row = self.depth // v
        with self.each(self.tile.rows * per_row) as index:
            i, k = index // per_row, index % per_row * v
            at = self.patch(i, T.bind(step * self.depth + k))
            value, inside = self.x[at.pixel, span(at.channel, v)], all_of(at.conditions)
            target = span(k // FRAGMENT * self.depth_stride + i * self.stride + k % FRAGMENT, v)
            if self.integer:
                stored = self._codes(inside, value, v)
            else:
                zero = T.broadcast(T.float32(0.0), v) if v > 1 else T.float32(0.0)
                stored = T.cast(T.if_then_else(inside, value, zero), vector("float16", v))
            T.buffer_store(self.a, stored, [target])

    def _codes(self, inside: Expr, value: Expr, lanes: int) -> Expr:
        """uint8 ``value`` where it is ``inside`` and else the zero-point, less 128, as int8."""
        if lanes < 4:
            fill = T.cast(self.grid[0], "uint8")
            chosen = T.if_then_else(inside, value, fill if lanes == 1 else T.broadcast(fill, lanes))
            flip = T.uint8(OFFSET) if lanes == 1 else T.broadcast(T.uint8(OFFSET), lanes)
            return T.reinterpret(chosen ^ flip, dtype=vector("int8", lanes))
        words = lanes // 4
        fill = T.cast(self.grid[0], "uint32") * T.uint32(0x01010101)
        flip = T.uint32(OFFSET * 0x01010101)
        if words > 1:
            fill, flip = T.broadcast(fill, words), T.broadcast(flip, words)
        chosen = T.if_then_else(inside, T.reinterpret(value, dtype=vector("uint32", words)), fill)
        return T.reinterpret(chosen ^ flip, dtype=f"int8x{lanes}")

    def _stage_weights(self, step: Expr) -> None:
        if self.row.nibbles:
            self._unpack_weights(step)
            return
        v = 16 if self.row.weight == "int8" else 8
        per_lane = FRAGMENT // v
        per_block = self.tile.depth * FRAGMENT * per_lane
        with self.each(self.column_blocks * per_block) as index:
            block, within = index // per_block, index % per_block
            k, lane, part = (
                within // (FRAGMENT * per_lane),
                within // per_lane % FRAGMENT,
                within % per_lane * v,
            )
            source = self.weight[
                self.g, self.first_block + block, step * self.tile.depth + k, 0, lane, span(part, v)
            ]
            # TVM spells a vector of sixteen equal bytes wrongly: it is made of words.
            zero = T.reinterpret(T.broadcast(T.uint32(0), 4), dtype=f"{self.row.weight}x{v}")
            value = T.if_then_else(self.first_block + block < self.blocks, source, zero)
            T.buffer_store(self.b, value, [span(index * v, v)])

    def _unpack_weights(self, step: Expr) -> None:
        """Two codes a byte: those of places 0 … 7 of a fragment in the low halves, of 8 … 15 in the high ones."""
        per_block = self.tile.depth * FRAGMENT
        with self.each(self.column_blocks * per_block) as index:
            block, k, lane = index // per_block, index % per_block // FRAGMENT, index % FRAGMENT
            at = T.bind(step * self.tile.depth + k)
            inside = self.first_block + block < self.blocks
            for half in range(2):
                source = self.weight[self.g, self.first_block + block, at, 0, lane, T.ramp(half * 4, 1, 4)]
                word = T.bind(
                    T.if_then_else(inside, T.reinterpret(source, dtype="uint32"), T.uint32(_NO_CODES))
                )
                for high in range(2):
                    codes = T.reinterpret(codes_of_nibbles(word, high), dtype="int8x4")
                    if self.row.multiplied:
                        codes = self._times_factor(codes, block, at, lane, inside)
                    target = span(index * FRAGMENT + 8 * high + 4 * half, 4)
                    T.buffer_store(self.b, codes, [target])

    def _times_factor(self, codes: Expr, block: Expr, step: Expr, lane: Expr, inside: Expr) -> Expr:
        row_steps = self.steps // self.shape.kernel[0]
        row_groups = -(-self.shape.run // self.problem.weight_group)
        at = step // row_steps * row_groups + step % row_steps * FRAGMENT // self.problem.weight_group
        factor = T.if_then_else(inside, self.factor[self.g, self.first_block + block, at, lane], T.int8(0))
        wide = T.Cast("int32x4", codes) * T.broadcast(T.bind(T.Cast("int32", factor)), 4)
        return T.Cast("int8x4", wide)


def _fragments(count: int, dtype: str, kind: str) -> Buffer:
    return T.alloc_buffer((count * _AREA,), dtype, scope=f"wmma.{kind}", layout=None)


def _call(value: Expr) -> None:
    T.evaluate(value)
