// The built-ins of CUDA that generated kernels use, for a host compiler. Shared arrays become thread-local variables:
// static in a function, without a size where declared extern.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "runtime.h"

#define alignas(bytes) __attribute__((aligned(bytes)))
#define __global__ __attribute__((noinline))
#define __device__
// What a function returns in memory is written before the sanitizer's eyes only where the function is inlined.
#define __host__ __attribute__((always_inline))
#define __constant__
#define __forceinline__ inline
#define __shared__ thread_local
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __maxnreg__(...)

constexpr int warpSize = 32;

#define EMULATED_VECTOR(type, name, align)                                                      \
  struct name##1 { type x; };                                                                   \
  struct __align__(2 * align) name##2 { type x, y; };                                           \
  struct name##3 { type x, y, z; };                                                             \
  struct __align__(4 * align <= 16 ? 4 * align : 16) name##4 { type x, y, z, w; };              \
  inline name##1 make_##name##1(type x) { return {x}; }                                         \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                              \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                   \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTOR(signed char, char, 1)
EMULATED_VECTOR(unsigned char, uchar, 1)
EMULATED_VECTOR(short, short, 2)
EMULATED_VECTOR(unsigned short, ushort, 2)
EMULATED_VECTOR(int, int, 4)
EMULATED_VECTOR(long long, longlong, 8)
EMULATED_VECTOR(unsigned long long, ulonglong, 8)
EMULATED_VECTOR(float, float, 4)
EMULATED_VECTOR(double, double, 8)
#undef EMULATED_VECTOR
struct uint1 { unsigned x; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
inline uint1 make_uint1(unsigned x) { return {x}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Barriers and warps.
inline void __syncthreads(unsigned line = __builtin_LINE()) { emulated::barrier(line); }
inline void __syncwarp(unsigned mask = ~0u, unsigned line = __builtin_LINE()) { emulated::sync_warp(mask, line); }
inline unsigned __activemask(unsigned line = __builtin_LINE()) { return emulated::active_mask(line); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emulated {
template <class T>
struct Shuffle {
  T value, result;
  int argument, width;
};

enum { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };

template <int kind, class T>
void shuffle(void** lanes, unsigned mask) {
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    auto* mine = static_cast<Shuffle<T>*>(lanes[i]);
    int first = i & -mine->width, last = first + mine->width, from = i;
    if (kind == SHUFFLE_INDEX) from = first + (mine->argument & (mine->width - 1));
    if (kind == SHUFFLE_UP) from = i - mine->argument < first ? i : i - mine->argument;
    if (kind == SHUFFLE_DOWN) from = i + mine->argument >= last ? i : i + mine->argument;
    if (kind == SHUFFLE_XOR) from = (i ^ mine->argument) >= last ? i : i ^ mine->argument;
    // A lane that does not take part gives something undefined, which sums over fewer lanes than a warp's read and drop.
    if (mask >> from & 1) mine->result = static_cast<Shuffle<T>*>(lanes[from])->value;
    else memset(static_cast<void*>(&mine->result), options.reverse ? 0x7f : 0xa5, sizeof(T));
  }
}

template <int kind, class T>
T shuffled(unsigned mask, T value, int argument, int width, unsigned line) {
  Shuffle<T> own = {value, value, argument, width};
  collective(kind, line, mask, &own, shuffle<kind, T>);
  return own.result;
}
}  // namespace emulated

#define EMULATED_SHUFFLE(name, kind)                                                                       \
  template <class T>                                                                                       \
  T name(unsigned mask, T value, int argument, int width = 32, unsigned line = __builtin_LINE()) {         \
    return emulated::shuffled<emulated::kind>(mask, value, argument, width, line);                         \
  }
EMULATED_SHUFFLE(__shfl_sync, SHUFFLE_INDEX)
EMULATED_SHUFFLE(__shfl_up_sync, SHUFFLE_UP)
EMULATED_SHUFFLE(__shfl_down_sync, SHUFFLE_DOWN)
EMULATED_SHUFFLE(__shfl_xor_sync, SHUFFLE_XOR)
#undef EMULATED_SHUFFLE

// Integers.
template <class A, class B>
inline unsigned emulated_dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 32; i += 8) c += unsigned(int(A(a >> i)) * int(B(b >> i)));
  return c;
}
inline int __dp4a(int a, int b, int c) { return emulated_dp4a<signed char, signed char>(a, b, c); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return emulated_dp4a<unsigned char, unsigned char>(a, b, c); }
// Of mixed signs, as generated sources define them where they are compiled for a device.
inline int __dp4a(unsigned a, int b, int c) { return emulated_dp4a<unsigned char, signed char>(a, b, c); }
inline int __dp4a(int a, unsigned b, int c) { return emulated_dp4a<signed char, unsigned char>(a, b, c); }
template <class To, class From>
inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline int __dp4a(char4 a, char4 b, int c) { return __dp4a(emulated_bits<int>(a), emulated_bits<int>(b), c); }
inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) {
  return __dp4a(emulated_bits<unsigned>(a), emulated_bits<unsigned>(b), c);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned pick = selector >> 4 * i & 15, byte = unsigned(bytes >> 8 * (pick & 7)) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << 8 * i;
  }
  return out;
}
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }

// Floats. Conversions to integers saturate and make 0 of a NaN, as the device's do.
template <class Integer>
inline Integer emulated_saturated(float x) {
  if (x != x) return 0;
  if (x <= float(std::numeric_limits<Integer>::min())) return std::numeric_limits<Integer>::min();
  if (x >= float(std::numeric_limits<Integer>::max())) return std::numeric_limits<Integer>::max();
  return Integer(x);
}
inline int __float2int_rn(float x) { return emulated_saturated<int>(rintf(x)); }
inline int __float2int_rz(float x) { return emulated_saturated<int>(x); }
inline unsigned __float2uint_rn(float x) { return emulated_saturated<unsigned>(rintf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x != x ? 0.0f : x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanhf(x) tanhf(x)
#define __powf(x, y) powf(x, y)

// A NaN operand is left out, as by the device's instructions.
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
template <class A, class B, class C = typename std::common_type<A, B>::type,
          class = typename std::enable_if<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value>::type>
inline C max(A a, B b) {
  if constexpr (std::is_floating_point<C>::value) return max(C(a), C(b));
  return C(a) > C(b) ? C(a) : C(b);
}
template <class A, class B, class C = typename std::common_type<A, B>::type,
          class = typename std::enable_if<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value>::type>
inline C min(A a, B b) {
  if constexpr (std::is_floating_point<C>::value) return min(C(a), C(b));
  return C(a) < C(b) ? C(a) : C(b);
}

template <class T>
inline const T& __ldg(const T* pointer) { return *pointer; }
