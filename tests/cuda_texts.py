"""Kernels in CUDA, written to do one thing each: what the emulator must compute, and what it must find wrong."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterable

import numpy as np
import pytest

from tvm_mpq.cuda_check.emulator import Check, Emulator
from tvm_mpq.cuda_check.kernels import KernelInfo

PRODUCTS = {
    f"product_{name}": (m, n, k, a, b, left, right)
    for m, n, k in ((16, 16, 16), (32, 8, 16), (8, 32, 16))
    for left, right in (("row", "col"), ("col", "row"))
    for name, a, b in (
        (f"s8_{m}_{n}_{left}", "signed char", "int"),
        (f"u8_{m}_{n}_{left}", "unsigned char", "int"),
        (f"f16_{m}_{n}_{left}", "half", "float"),
        (f"f16f16_{m}_{n}_{left}", "half", "half"),
    )
}
"""Matrix products of a warp: m, n, k, the operands' and the sums' type, and how a and b lie."""

_PRODUCT = """
extern "C" __global__ void {name}({a}* a, {a}* b, {c}* c) {{
  using namespace nvcuda::wmma;
  fragment<matrix_a, {m}, {n}, {k}, {a}, {left}_major> fa;
  fragment<matrix_b, {m}, {n}, {k}, {a}, {right}_major> fb;
  fragment<accumulator, {m}, {n}, {k}, {c}> fc;
  load_matrix_sync(fc, c, {n}, mem_row_major);
  load_matrix_sync(fa, a, {lda});
  load_matrix_sync(fb, b, {ldb});
  mma_sync(fc, fa, fb, fc);
  store_matrix_sync(c, fc, {n}, mem_row_major);
}}
"""

_REST = r"""
#ifdef __CUDACC__  // as generated sources define them
static __device__ int __dp4a(unsigned a, int b, int c) {
  asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(c) : "r"(a), "r"(b));
  return c;
}
static __device__ int __dp4a(int a, unsigned b, int c) {
  asm("dp4a.s32.u32 %0, %1, %2, %0;" : "+r"(c) : "r"(a), "r"(b));
  return c;
}
#endif
extern "C" __global__ void product_s4(void* a, void* b, int* c) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 8, 8, 32, experimental::precision::s4, row_major> fa;
  fragment<matrix_b, 8, 8, 32, experimental::precision::s4, col_major> fb;
  fragment<accumulator, 8, 8, 32, int> fc;
  fill_fragment(fc, 7);
  load_matrix_sync(fa, a, 32);
  load_matrix_sync(fb, b, 32);
  mma_sync(fc, fa, fb, fc);
  store_matrix_sync(c, fc, 8, mem_col_major);
}
extern "C" __global__ void dots(int* a, int* b, int* c, int* out) {
  int i = threadIdx.x;
  out[4 * i] = __dp4a(a[i], b[i], c[i]);
  out[4 * i + 1] = __dp4a((unsigned)a[i], (unsigned)b[i], (unsigned)c[i]);
  out[4 * i + 2] = __dp4a((unsigned)a[i], b[i], c[i]);
  out[4 * i + 3] = __dp4a(a[i], (unsigned)b[i], c[i]);
}
extern "C" __global__ void shuffles(int* x, int* out, int n, int width) {
  int v = x[threadIdx.x];
  out[threadIdx.x] = __shfl_sync(0xffffffff, v, n, width);
  out[threadIdx.x + 32] = __shfl_up_sync(0xffffffff, v, n, width);
  out[threadIdx.x + 64] = __shfl_down_sync(0xffffffff, v, n, width);
  out[threadIdx.x + 96] = __shfl_xor_sync(0xffffffff, v, n, width);
}
extern "C" __global__ void __launch_bounds__(256) sum(float* x, float* out) {
  extern __shared__ float parts[];
  float v = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int d = 16; d > 0; d >>= 1) v += __shfl_down_sync(0xffffffff, v, d, 32);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < blockDim.x / 32) {
    unsigned mask = __activemask();
    v = parts[threadIdx.x];
    for (int d = blockDim.x / 64; d > 0; d >>= 1) v += __shfl_down_sync(mask, v, d, 32);
  }
  if (threadIdx.x == 0) out[blockIdx.x] = v;
}
extern "C" __global__ void transpose(int* x, int* out, int rows, int columns) {
  __shared__ int tile[8][9];
  int i = blockIdx.y * 8 + threadIdx.y, j = blockIdx.x * 8 + threadIdx.x;
  if (i < rows && j < columns) tile[threadIdx.y][threadIdx.x] = x[i * columns + j];
  __syncthreads();
  i = blockIdx.y * 8 + threadIdx.x, j = blockIdx.x * 8 + threadIdx.y;
  if (i < rows && j < columns) out[j * rows + i] = tile[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void halves(half* a, half* b, half* c, half* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = a[i] + b[i];
  out[n + i] = a[i] - b[i];
  out[2 * n + i] = a[i] * b[i];
  out[3 * n + i] = a[i] / b[i];
  out[4 * n + i] = __hfma(a[i], b[i], c[i]);
}
extern "C" __global__ void conversions(float* x, half* h, nv_bfloat16* b, int* i) {
  int t = threadIdx.x;
  h[t] = (half)x[t];
  b[t] = (nv_bfloat16)x[t];
  i[t] = __float2int_rn(x[t]);
}
extern "C" __global__ void permute(unsigned* x, unsigned* y, unsigned* s, unsigned* out) {
  int i = threadIdx.x;
  out[i] = __byte_perm(x[i], y[i], s[i]);
}
// From here on each is wrong.
extern "C" __global__ void race_read(int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = 0;
  __syncthreads();
  s[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}
extern "C" __global__ void race_write(int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x / 2] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x / 2];
}
extern "C" __global__ void race_after(int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x ^ 33];
  s[threadIdx.x] = 0;
}
extern "C" __global__ void race_warp(int* x, int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 32];
}
extern "C" __global__ void race_blocks(int* x, int* out) { out[threadIdx.x] = x[threadIdx.x] + blockIdx.x; }
extern "C" __global__ void race_global(int* x, int* out) {
  out[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = out[63 - threadIdx.x];
}
extern "C" __global__ void after_the_end(int* x, int* out) { out[threadIdx.x + 1] = x[threadIdx.x]; }
extern "C" __global__ void before_the_start(int* x, int* out) { out[threadIdx.x] = x[(int)threadIdx.x - 1]; }
extern "C" __global__ void wide_after_the_end(int* x, int* out) {
  int4 v = *(int4*)(x + 60);
  *(int4*)(out + 4 * threadIdx.x + 4) = v;
}
extern "C" __global__ void after_shared(int* x, int* out) {
  __shared__ int s[63];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void misaligned(int* x, int* out) {
  int2 v = *(int2*)(x + threadIdx.x / 2 * 2 + 1);
  out[threadIdx.x] = v.x + v.y;
}
extern "C" __global__ void uninitialized(int* x, int* out) {
  __shared__ int s[64];
  if (threadIdx.x < 63) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void ended(int* x, int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void two_barriers(int* x, int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void half_a_warp(int* x, int* out) {
  int v = x[threadIdx.x];
  if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffff, v, 1, 32);
  out[threadIdx.x] = v;
}
extern "C" __global__ void lanes_matter(signed char* x, int* out) {
  using namespace nvcuda::wmma;
  fragment<accumulator, 16, 16, 16, int> f;
  for (int i = 0; i < f.num_elements; ++i) f.x[i] = threadIdx.x;
  store_matrix_sync(out, f, 16, mem_row_major);
}
extern "C" __global__ void order_matters(int* x, int* out) {
  int v = x[threadIdx.x];
  unsigned mask = __activemask();
  if (threadIdx.x % 2) out[threadIdx.x] = __shfl_down_sync(__activemask(), v, 1, 32) + (mask != 0);
}
extern "C" __global__ void unaligned_matrix(signed char* x, int* out) {
  using namespace nvcuda::wmma;
  fragment<accumulator, 16, 16, 16, int> f;
  fill_fragment(f, 0);
  store_matrix_sync(out + 4, f, 16, mem_row_major);
}
"""


def source(products: Iterable[str] = tuple(PRODUCTS)) -> str:
    """The kernels of this module, of matrix products those that are named."""
    text = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <mma.h>\n"
    for name in products:
        m, n, k, a, c, left, right = PRODUCTS[name]
        lda, ldb = (max(16, extent) for extent in (k if left == "row" else m, n if right == "row" else k))
        text += _PRODUCT.format(name=name, a=a, c=c, m=m, n=n, k=k, left=left, right=right, lda=lda, ldb=ldb)
    return text + _REST


def require_compiler() -> None:
    """Skip where there is nothing to emulate with."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: apt-get install g++")


@functools.cache
def emulator() -> Emulator:
    """The kernels, each launch checked."""
    require_compiler()
    signatures = re.findall(r"(\w+)\(([^()]*)\) *\{", source())
    infos = [
        KernelInfo(name, (0,) * (listed.count(",") + 1), "")
        for name, listed in signatures
        if re.search(rf"__global__ void (__launch_bounds__\(\d+\) )?{name}\(", source())
    ]
    return Emulator(source(), infos, Check.ALWAYS)


def operand(values: np.ndarray, rows_first: bool) -> np.ndarray:
    """A matrix as a product's kernel reads it: rows (or columns) are filled up to 16 elements."""
    lines = values if rows_first else values.T
    return aligned(np.pad(lines, ((0, 0), (0, max(0, 16 - lines.shape[1]))), constant_values=99))


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 64 bytes, as TVM allocates."""
    raw = np.empty(values.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
