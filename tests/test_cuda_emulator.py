"""The emulator computes what CUDA defines, and finds the mistakes that were planted."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from cuda_texts import PRODUCTS, aligned, emulator, operand, require_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tvm_mpq.cuda_check.emulator import Emulator, KernelFault
from tvm_mpq.cuda_check.kernels import KernelInfo
from tvm_mpq.errors import MpqError

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)
words = arrays(np.int32, 32, elements=st.integers(-(2**31), 2**31 - 1))
halves = arrays(np.uint16, 64, elements=st.integers(0, 2**16 - 1)).map(lambda bits: bits.view(np.float16))


@EXAMPLES
@given(words, words, words)
def test_dp4a_adds_four_products_of_bytes(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    out = np.zeros((32, 4), np.int32)
    emulator().launch("dots", [a, b, c, out], [1], [32])
    for column, (left, right) in enumerate([("i1", "i1"), ("u1", "u1"), ("u1", "i1"), ("i1", "u1")]):
        products = a.view(left).astype(np.int64) * b.view(right).astype(np.int64)
        sums = products.reshape(32, 4).sum(axis=1) + c
        np.testing.assert_array_equal(out[:, column], sums.astype(np.uint64).astype(np.uint32).view(np.int32))


@EXAMPLES
@given(st.permutations(range(32)), st.integers(0, 31), st.sampled_from([2, 4, 8, 16, 32]))
def test_shuffles_move_values_between_lanes(values: list[int], n: int, width: int) -> None:
    x, out = np.array(values, np.int32), np.zeros((4, 32), np.int32)
    emulator().launch("shuffles", [x, out, n, width], [1], [32])
    for lane in range(32):
        first = lane // width * width
        sources = (
            first + n % width,
            lane - n if lane - n >= first else lane,
            lane + n if lane + n < first + width else lane,
            lane ^ n if lane ^ n < first + width else lane,
        )
        assert out[:, lane].tolist() == [x[source] for source in sources]


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_matrix_products_equal_numpy(name: str) -> None:
    m, n, k, factors, sums, left, right = PRODUCTS[name]
    dtype = {"signed char": np.int8, "unsigned char": np.uint8, "half": np.float16}[factors]
    rng = np.random.default_rng(len(name))
    low, high = (-9, 10) if factors == "half" else (np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
    a, b = rng.integers(low, high, (m, k)).astype(dtype), rng.integers(low, high, (k, n)).astype(dtype)
    c = rng.integers(-99, 100, (m, n)).astype(
        {"int": np.int32, "float": np.float32, "half": np.float16}[sums]
    )
    exact = a.astype(np.int64) @ b.astype(np.int64) + c.astype(np.int64)
    out = aligned(c)
    emulator().launch(
        name,
        [operand(a, left == "row"), operand(b, right == "row"), out],
        [1],
        [32],
    )
    np.testing.assert_array_equal(out, exact.astype(c.dtype), strict=True)


def test_products_of_four_bits_equal_numpy() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(-8, 8, (8, 32)), rng.integers(-8, 8, (8, 32))
    packed = [aligned((x[:, ::2] & 15 | (x[:, 1::2] & 15) << 4).astype(np.uint8)) for x in (a, b)]
    out = aligned(np.zeros((8, 8), np.int32))
    emulator().launch("product_s4", [*packed, out], [1], [32])
    np.testing.assert_array_equal(out.T, a @ b.T + 7)


@EXAMPLES
@given(st.integers(1, 5), st.sampled_from([64, 128, 256]), st.integers(0, 9))
def test_sums_over_warps_and_shared_memory(blocks: int, threads: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-99, 100, (blocks, threads)).astype(np.float32)
    out = np.zeros(blocks, np.float32)
    emulator().launch("sum", [x, out], [blocks], [threads], shared=threads // 32 * 4)
    np.testing.assert_array_equal(out, x.sum(axis=1))
    with pytest.raises(KernelFault, match=r"sum: out of bounds: .*shared memory"):
        emulator().launch("sum", [x, out], [blocks], [threads], shared=threads // 32 * 4 - 4)


@EXAMPLES
@given(st.integers(1, 30), st.integers(1, 30))
def test_blocks_exchange_through_shared_memory(rows: int, columns: int) -> None:
    x = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    out = np.zeros((columns, rows), np.int32)
    emulator().launch("transpose", [x, out, rows, columns], [-(-columns // 8), -(-rows // 8)], [8, 8])
    np.testing.assert_array_equal(out, x.T)


@EXAMPLES
@given(halves, halves, halves)
def test_halves_round_once(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    n = len(a)
    out = np.zeros((5, n), np.float16)
    emulator().launch("halves", [a, b, c, out, n], [1], [n])
    with np.errstate(all="ignore"):
        for ours, exact in zip(out, (a + b, a - b, a * b, a / b), strict=False):
            np.testing.assert_array_equal(ours, exact)
    for ours, x, y, z in zip(out[4], a, b, c, strict=True):
        if np.isfinite([x, y, z]).all() and np.isfinite(ours):
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            near = [ours, np.nextafter(ours, np.float16(np.inf)), np.nextafter(ours, np.float16(-np.inf))]
            gaps = [abs(Fraction(float(v)) - exact) for v in near if np.isfinite(v)]
            assert gaps[0] == min(gaps)


@EXAMPLES
@given(arrays(np.uint32, 64, elements=st.integers(0, 2**32 - 1)))
def test_conversions_round_to_nearest_even(bits: np.ndarray) -> None:
    x = bits.view(np.float32)
    h, b, i = np.zeros(64, np.float16), np.zeros(64, ml_dtypes.bfloat16), np.zeros(64, np.int32)
    emulator().launch("conversions", [x, h, b.view(np.uint16), i], [1], [64])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(h, x.astype(np.float16))
        np.testing.assert_array_equal(b.astype(np.float32), x.astype(ml_dtypes.bfloat16).astype(np.float32))
        rounded = np.clip(np.rint(np.nan_to_num(x.astype(np.float64), nan=0.0)), -(2**31), 2**31 - 1)
    np.testing.assert_array_equal(i, rounded.astype(np.int32))


@EXAMPLES
@given(*(arrays(np.uint32, 32, elements=st.integers(0, 2**32 - 1)) for _ in range(3)))
def test_bytes_are_picked(x: np.ndarray, y: np.ndarray, selector: np.ndarray) -> None:
    out = np.zeros(32, np.uint32)
    emulator().launch("permute", [x, y, selector, out], [1], [32])
    pool = np.stack([x, y], axis=1).view(np.uint8)
    for lane in range(32):
        nibbles = [int(selector[lane]) >> 4 * i & 15 for i in range(4)]
        picked = [int(pool[lane, n & 7]) for n in nibbles]
        bytes_ = [(255 if p & 128 else 0) if n & 8 else p for n, p in zip(nibbles, picked, strict=True)]
        assert int(out[lane]) == int.from_bytes(bytes(bytes_), "little")


FAULTS = {
    "race_read": "race|uninitialized", "race_write": "race", "race_after": "race", "race_warp": "race|uninitialized",
    "race_blocks": "race", "race_global": "race", "after_the_end": "out of bounds",
    "before_the_start": "out of bounds", "wide_after_the_end": "out of bounds", "after_shared": "out of bounds",
    "misaligned": "misaligned", "uninitialized": "uninitialized", "ended": "barrier divergence",
    "two_barriers": "barrier divergence", "half_a_warp": "warp divergence", "lanes_matter": "order",
    "order_matters": "order", "unaligned_matrix": "misaligned",
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAULTS))
def test_planted_mistakes_are_found(name: str) -> None:
    matrices = name in ("lanes_matter", "unaligned_matrix")
    out = aligned(np.zeros(512 if matrices else 64, np.int32))
    arguments = [aligned(np.arange(64, dtype=np.int32)), out]
    blocks = 2 if name == "race_blocks" else 1
    with pytest.raises(KernelFault, match=rf"^{name}: ({FAULTS[name]}): ") as fault:
        emulator().launch(name, arguments, [blocks], [32 if matrices or name == "order_matters" else 64])
    if FAULTS[name] in ("out of bounds", "misaligned"):
        assert "(line " in str(fault.value), "the source line is named"


@pytest.mark.parametrize(
    ("grid", "block", "shared", "said"),
    [
        ([1], [1025], 0, "1024"),
        ([1], [8, 8, 65], 0, "1024"),
        ([1, 65536], [32], 0, "grid"),
        ([1], [64], 48 << 10, "shared memory"),
    ],
)
def test_launches_that_no_device_takes(grid: list[int], block: list[int], shared: int, said: str) -> None:
    arguments = [np.zeros(2048, np.int32), np.zeros(2048, np.int32)]
    with pytest.raises(KernelFault, match=f"^uninitialized: launch: .*{said}"):
        emulator().launch("uninitialized", arguments, grid, block, shared)


def test_a_source_that_no_compiler_takes() -> None:
    require_compiler()
    with pytest.raises(MpqError, match=r"g\+\+ cannot compile the CUDA source: .*nonsense"):
        Emulator('extern "C" __global__ void k(int* a) { nonsense; }', [KernelInfo("k", (0,), "")])
