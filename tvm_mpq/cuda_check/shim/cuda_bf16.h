// nv_bfloat16: every operation is one of float, rounded once to nearest even.
#pragma once
#include "cuda_builtins.h"

struct __align__(2) __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {
    uint32_t wide = emulated_bits<uint32_t>(x);
    bits = x != x ? 0x7fff : uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  template <class T, class = typename std::enable_if<std::is_arithmetic<T>::value>::type>
  __nv_bfloat16(T x) : __nv_bfloat16(static_cast<float>(x)) {}
  operator float() const { return emulated_bits<float>(uint32_t(bits) << 16); }
};
typedef __nv_bfloat16 nv_bfloat16;

#define EMULATED_BFLOAT(op) \
  inline nv_bfloat16 operator op(nv_bfloat16 a, nv_bfloat16 b) { return nv_bfloat16(float(a) op float(b)); }
EMULATED_BFLOAT(+)
EMULATED_BFLOAT(-)
EMULATED_BFLOAT(*)
EMULATED_BFLOAT(/)
#undef EMULATED_BFLOAT
inline nv_bfloat16 operator-(nv_bfloat16 a) { return nv_bfloat16(-float(a)); }
inline bool __hgt(nv_bfloat16 a, nv_bfloat16 b) { return float(a) > float(b); }
inline bool __hlt(nv_bfloat16 a, nv_bfloat16 b) { return float(a) < float(b); }
inline float __bfloat162float(nv_bfloat16 x) { return x; }
inline nv_bfloat16 __float2bfloat16(float x) { return x; }
inline nv_bfloat16 __float2bfloat16_rn(float x) { return x; }

struct __align__(4) __nv_bfloat162 {
  nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(nv_bfloat16 a, nv_bfloat16 b) : x(a), y(b) {}
};
typedef __nv_bfloat162 nv_bfloat162;
