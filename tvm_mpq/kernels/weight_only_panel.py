"""The program of a weight-only matrix multiplication of many rows, written out for one shape, instruction and tile.

    for task in parallel(row tasks × column tasks):
        for column block:
            widen its weights to floats: code · multiplier, a panel in the cache
            for row tile:
                for k (unrolled):  sum[rows, 2 vectors] += x · panel     (registers)
                scale, add the bias, activate and store the tile

A panel is widened again for each row task: a task has rows enough to make up for that.
"""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.convolution import Output, activate
from tvm_mpq.kernels.emitting import argument, scratch, store_vector
from tvm_mpq.kernels.weight_only import BLOCK, WeightOnlyGeometry, WeightOnlyTile


def weight_only_panel(geometry: WeightOnlyGeometry, out: Output, tile: WeightOnlyTile) -> PrimFunc:
    """The kernel: its parameters are those of ``weight_only_program.weight_only``."""
    return _Program(geometry, out, tile).emit()


class _Program:
    def __init__(self, geometry: WeightOnlyGeometry, out: Output, tile: WeightOnlyTile) -> None:
        self.g, self.out, self.tile = geometry, out, tile
        self.lanes = geometry.dot.lanes
        self.tiles = -(-geometry.rows // tile.rows)

    def emit(self) -> PrimFunc:
        g, tile = self.g, self.tile
        row_tasks = -(-self.tiles // tile.row_tiles)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            self.x = argument("x", (g.rows, g.in_channels), "float32")
            self.weight = argument("weight", g.weight_shape, "uint8")
            if g.group:
                self.multiplier = argument("multiplier", g.multiplier_shape, "uint8")
            self.scale = argument("scale", (g.blocks, g.columns), "float32")
            self.bias = argument("bias", (g.blocks, g.columns), "float32")
            self.result = argument("out", (g.rows, g.out_channels), "float32")
            with T.parallel(0, row_tasks * (g.blocks // tile.column_blocks)) as task:
                first = T.bind(task % row_tasks * tile.row_tiles)
                count = T.bind(T.min(tile.row_tiles, self.tiles - first))
                panel = scratch(g.steps * BLOCK * g.columns, "float32")
                with T.serial(0, tile.column_blocks) as column:
                    block = T.bind(task // row_tasks * tile.column_blocks + column)
                    with T.serial(0, g.steps) as step:
                        self._widen(panel, block, step)
                    with T.serial(0, count) as row_tile:
                        self._tile(panel, block, (first + row_tile) * tile.rows)
        return builder.get()

    def _widen(self, panel: Buffer, block: Expr, step: Expr) -> None:
        """A block of 32 of the reduction: bytes of a word hold four elements of one column, fields of bits vectors."""
        g, n = self.g, self.lanes
        fields = 8 // g.bits
        scales: list[Expr] = []
        for vector in range(2):
            scale = T.broadcast(T.float32(1), n)
            if g.group:
                codes = self.multiplier[block, step // (g.group // BLOCK), T.ramp(vector * n, 1, n)]
                scale = T.bind(T.cast(T.cast(codes, f"int32x{n}"), f"float32x{n}"))
            scales.append(scale)
        zeros = [T.bind(scale * T.broadcast(T.float32(g.offset), n)) for scale in scales]
        mask = T.broadcast(T.uint32(2**g.bits - 1), n)
        with T.serial(0, g.weight_shape[2] // (4 * n)) as load:
            raw = T.bind(
                T.reinterpret(self.weight[block, step, T.ramp(load * 4 * n, 1, 4 * n)], dtype=f"uint32x{n}")
            )
            for element in range(4):
                for field in range(fields):
                    pair, vector = divmod(field, 2)
                    shift = 8 * element + g.bits * field
                    code = T.bitwise_and(T.shift_right(raw, T.broadcast(T.uint32(shift), n)), mask)
                    value = T.cast(T.reinterpret(code, dtype=f"int32x{n}"), f"float32x{n}")
                    k = step * BLOCK + (load * (fields // 2) + pair) * 4 + element
                    place = T.ramp(k * g.columns + vector * n, 1, n)
                    T.buffer_store(panel, value * scales[vector] - zeros[vector], [place])

    def _tile(self, panel: Buffer, block: Expr, first: Expr) -> None:
        g, n, rows = self.g, self.lanes, self.tile.rows
        sums = scratch(rows * g.columns, "float32")
        places = [
            (row, vector, T.ramp((row * 2 + vector) * n, 1, n)) for row in range(rows) for vector in range(2)
        ]
        for _, _, place in places:
            T.buffer_store(sums, T.broadcast(T.float32(0), n), [place])
        # Rows past the last read the last one again, and are not stored.
        ragged = g.rows % rows != 0
        at = [T.bind(T.min(first + row, g.rows - 1) if ragged else first + row) for row in range(rows)]
        unroll = max(d for d in (1, 2, 4) if g.in_channels % d == 0)
        with T.serial(0, g.in_channels // unroll) as outer:
            for inner in range(unroll):
                k = outer * unroll + inner
                weights = [T.bind(panel[T.ramp(k * g.columns + v * n, 1, n)]) for v in range(2)]
                for row in range(rows):
                    x = T.bind(T.broadcast(self.x[at[row], k], n))
                    for vector in range(2):
                        place = T.ramp((row * 2 + vector) * n, 1, n)
                        T.buffer_store(sums, sums[place] + x * weights[vector], [place])
        for row, vector, place in places:
            columns = T.ramp(vector * n, 1, n)
            value = activate(sums[place] * self.scale[block, columns] + self.bias[block, columns], self.out)
            conditions = [first + row < g.rows] if ragged else []
            channel = T.bind(block * g.columns + vector * n)
            if g.out_channels % g.columns:
                conditions.append(channel < g.out_channels)
            store_vector(self.result, value, first + row, channel, n, conditions)
