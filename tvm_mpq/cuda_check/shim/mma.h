// nvcuda::wmma: each lane holds its part of a matrix, products are made where all 32 lanes have come.
#pragma once
#include "cuda_builtins.h"

struct __half;

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace experimental {
namespace precision {
struct s4 {};
struct u4 {};
}  // namespace precision
}  // namespace experimental

namespace detail {
template <class T>
struct Element {
  using Storage = T;
  static constexpr int bits = 8 * sizeof(T);
  static constexpr bool half = std::is_same<T, ::__half>::value;
};
template <>
struct Element<experimental::precision::s4> {
  using Storage = int;
  static constexpr int bits = 4;
  static constexpr bool half = false;
};
template <>
struct Element<experimental::precision::u4> {
  using Storage = unsigned;
  static constexpr int bits = 4;
  static constexpr bool half = false;
};
template <class Use, int m, int n, int k>
struct Extents;
template <int m, int n, int k>
struct Extents<matrix_a, m, n, k> {
  static constexpr int rows = m, columns = k;
};
template <int m, int n, int k>
struct Extents<matrix_b, m, n, k> {
  static constexpr int rows = k, columns = n;
};
template <int m, int n, int k>
struct Extents<accumulator, m, n, k> {
  static constexpr int rows = m, columns = n;
};
}  // namespace detail

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
  using Extents = detail::Extents<Use, m, n, k>;
  using Element = detail::Element<T>;
  using Storage = typename Element::Storage;
  static constexpr bool is_accumulator = std::is_same<Use, accumulator>::value;
  static constexpr bool columns_first = std::is_same<Layout, col_major>::value;
  static constexpr int bytes = Extents::rows * Extents::columns * Element::bits / 8 / 32;  // a lane's
  static constexpr int num_elements = bytes / sizeof(Storage);
  Storage x[num_elements];
  const void* from = nullptr;  // where it was loaded from: one address in all lanes
};

namespace detail {
// Which of the pieces, of equal size and in memory's order, the lane holds. Kernels may not depend on it.
inline int piece(int lane) { return lane ^ int(emulated::options.lanes); }
inline int own_piece() { return piece(emulated::linear_thread % 32); }

// An address is a multiple of the size of a lane's fragment (PTX ISA, "Matrix storage for WMMA"; half operands are held
// twice), a stride one of 16 bytes (CUDA C++ guide; the PTX ISA wants the former of every row).
template <class F>
inline void check_address(const void* pointer, unsigned stride, const char* what, const void* where) {
  constexpr bool doubled = F::Element::half && !F::is_accumulator;
  constexpr unsigned unit = F::bytes << doubled, bits = F::Element::bits;
  if (reinterpret_cast<uintptr_t>(pointer) % unit)
    emulated::fail("misaligned", where, "%s at an address that is no multiple of %u bytes", what, unit);
  if (stride * bits % 128)
    emulated::fail("misaligned", where, "%s with a stride of %u elements, no multiple of 16 bytes", what, stride);
}

// The bytes of one lane lie in runs of at most a row (or column) of the matrix.
template <bool write, int lines, int line_bytes, int bytes>
__attribute__((no_sanitize("thread"))) inline void move(void* lane, char* memory, size_t stride_bytes, const void* where) {
  constexpr int run = bytes < line_bytes ? bytes : line_bytes;
  char* own = static_cast<char*>(lane);
  for (int done = 0; done < bytes; done += run) {
    int place = own_piece() * bytes + done;
    char* there = memory + place / line_bytes * stride_bytes + place % line_bytes;
    emulated::access(there, run, write, where);
    if (write) memcpy(there, own + done, run);
    else memcpy(own + done, there, run);
  }
}

template <bool write, class F>
__attribute__((no_sanitize("thread"))) inline void move(F& f, const void* memory, unsigned stride, bool columns_first, const void* where) {
  using E = typename F::Extents;
  constexpr int bits = F::Element::bits;
  check_address<F>(memory, stride, write ? "a matrix is stored" : "a matrix is loaded", where);
  char* bytes = static_cast<char*>(const_cast<void*>(memory));
  size_t stride_bytes = size_t(stride) * bits / 8;
  if (columns_first == F::columns_first) {
    constexpr int lines = F::columns_first ? E::columns : E::rows, line = F::columns_first ? E::rows : E::columns;
    move<write, lines, line * bits / 8, F::bytes>(f.x, bytes, stride_bytes, where);
    return;
  }
  for (int i = 0; i < F::num_elements; ++i) {  // an accumulator by columns
    int place = own_piece() * F::num_elements + i;
    char* there = bytes + place % E::columns * stride_bytes + place / E::columns * sizeof(f.x[0]);
    emulated::access(there, sizeof f.x[0], write, where);
    if (write) memcpy(there, &f.x[i], sizeof f.x[0]);
    else memcpy(&f.x[i], there, sizeof f.x[0]);
  }
}

// All elements of a matrix, from the lanes, rows first.
template <class Wide, class F>
inline void gather(const F* const* lanes, Wide* out) {
  using E = typename F::Extents;
  typename F::Storage all[32 * F::num_elements];
  for (int lane = 0; lane < 32; ++lane) memcpy(all + piece(lane) * F::num_elements, lanes[lane]->x, F::bytes);
  for (int i = 0; i < E::rows; ++i)
    for (int j = 0; j < E::columns; ++j) {
      int place = F::columns_first ? j * E::rows + i : i * E::columns + j;
      if constexpr (F::Element::bits == 4) {
        auto word = all[place / 8] << (28 - place % 8 * 4);
        out[i * E::columns + j] = Wide(word >> 28);
      } else {
        out[i * E::columns + j] = Wide(all[place]);
      }
    }
}

template <class D, class A, class B, class C>
struct Operands {
  D* d;
  const A* a;
  const B* b;
  const C* c;
};

template <class F>
inline void same_source(const F* const* lanes) {
  for (int i = 1; i < 32; ++i)
    if (lanes[i]->from != lanes[0]->from)
      emulated::fail("warp divergence", nullptr, "lane %d loaded a fragment from another address than lane 0", i);
}

template <class Sum, class D, class A, class B, class C>
__attribute__((no_sanitize("thread"))) void multiply(void** lanes, unsigned mask) {
  if (mask != ~0u) emulated::fail("warp divergence", nullptr, "a matrix product by the lanes %08x only", mask);
  constexpr int m = A::Extents::rows, k = A::Extents::columns, n = B::Extents::columns;
  const A* as[32];
  const B* bs[32];
  const C* cs[32];
  for (int i = 0; i < 32; ++i) {
    auto* own = static_cast<Operands<D, A, B, C>*>(lanes[i]);
    as[i] = own->a;
    bs[i] = own->b;
    cs[i] = own->c;
  }
  same_source(as);
  same_source(bs);
  Sum a[m * k], b[k * n], sums[m * n];
  gather(as, a);
  gather(bs, b);
  gather(cs, sums);
  for (int i = 0; i < m; ++i)
    for (int l = 0; l < k; ++l) {
      Sum factor = a[i * k + l];
      for (int j = 0; j < n; ++j) sums[i * n + j] += factor * b[l * n + j];
    }
  typename D::Storage out[m * n];
  for (int i = 0; i < m * n; ++i) out[i] = static_cast<typename D::Storage>(sums[i]);
  for (int lane = 0; lane < 32; ++lane) {
    auto* own = static_cast<Operands<D, A, B, C>*>(lanes[lane]);
    memcpy(own->d->x, out + piece(lane) * D::num_elements, D::bytes);
    own->d->from = nullptr;
  }
}

inline void same_pointer(void** lanes, unsigned mask) {
  if (mask != ~0u) emulated::fail("warp divergence", nullptr, "a matrix is stored by the lanes %08x only", mask);
  for (int i = 1; i < 32; ++i)
    if (lanes[i] != lanes[0]) emulated::fail("warp divergence", nullptr, "lane %d stores a matrix to another address than lane 0", i);
}
}  // namespace detail

template <class F, class Value>
inline void fill_fragment(F& f, const Value& value) {
  for (auto& x : f.x) x = value;
  f.from = nullptr;
}

template <class Use, int m, int n, int k, class T, class Layout, class P>
__attribute__((noinline)) void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& f, const P* pointer, unsigned stride) {
  f.from = pointer;
  detail::move<false>(f, pointer, stride, f.columns_first, __builtin_return_address(0));
}

template <int m, int n, int k, class T>
__attribute__((noinline)) void load_matrix_sync(fragment<accumulator, m, n, k, T>& f, const T* pointer, unsigned stride, layout_t layout) {
  f.from = pointer;
  detail::move<false>(f, pointer, stride, layout == mem_col_major, __builtin_return_address(0));
}

template <int m, int n, int k, class T>
__attribute__((noinline)) void store_matrix_sync(T* pointer, const fragment<accumulator, m, n, k, T>& f, unsigned stride, layout_t layout,
                              unsigned line = __builtin_LINE()) {
  emulated::collective(__COUNTER__, line, ~0u, pointer, detail::same_pointer);
  detail::move<true>(const_cast<fragment<accumulator, m, n, k, T>&>(f), pointer, stride, layout == mem_col_major,
                     __builtin_return_address(0));
}

template <class D, int m, int n, int k, class S, class T, class LayoutA, class LayoutB, class C>
inline void mma_sync(fragment<accumulator, m, n, k, D>& d, const fragment<matrix_a, m, n, k, S, LayoutA>& a,
                     const fragment<matrix_b, m, n, k, T, LayoutB>& b, const fragment<accumulator, m, n, k, C>& c,
                     bool saturate = false, unsigned line = __builtin_LINE()) {
  using FA = fragment<matrix_a, m, n, k, S, LayoutA>;
  using FB = fragment<matrix_b, m, n, k, T, LayoutB>;
  using FC = fragment<accumulator, m, n, k, C>;
  using FD = fragment<accumulator, m, n, k, D>;
  // Integers wrap, as unsigned numbers do without overflow.
  using Sum = typename std::conditional<std::is_integral<C>::value, unsigned, float>::type;
  if (saturate) emulated::fail("unsupported", nullptr, "a saturating matrix product");
  detail::Operands<FD, FA, FB, FC> own = {&d, &a, &b, &c};
  emulated::collective(1000, line, ~0u, &own, detail::multiply<Sum, FD, FA, FB, FC>);
}

}  // namespace wmma
}  // namespace nvcuda
