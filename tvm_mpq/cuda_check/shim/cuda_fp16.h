// half: every operation is one of float, rounded once. Float's significand has more than twice the bits of half's, so
// that the result is the correctly rounded one; a fused multiply-add goes through double.
#pragma once
#include "cuda_builtins.h"

struct __align__(2) __half {
  _Float16 value;
  __half() = default;
  __half(_Float16 x) : value(x) {}
  __half(float x) : value(static_cast<_Float16>(x)) {}
  __half(double x) : value(static_cast<_Float16>(x)) {}
  template <class T, class = typename std::enable_if<std::is_integral<T>::value>::type>
  __half(T x) : value(static_cast<_Float16>(static_cast<float>(x))) {}
  operator float() const { return static_cast<float>(value); }
};
typedef __half half;

#define EMULATED_HALF(op)                                                                           \
  inline half operator op(half a, half b) { return half(float(a) op float(b)); }                    \
  inline half& operator op##=(half& a, half b) { return a = a op b; }
EMULATED_HALF(+)
EMULATED_HALF(-)
EMULATED_HALF(*)
EMULATED_HALF(/)
#undef EMULATED_HALF
inline half operator-(half a) { return half(-float(a)); }
#define EMULATED_COMPARE(op, name)                                                \
  inline bool operator op(half a, half b) { return float(a) op float(b); }        \
  inline bool name(half a, half b) { return float(a) op float(b); }
EMULATED_COMPARE(<, __hlt)
EMULATED_COMPARE(<=, __hle)
EMULATED_COMPARE(>, __hgt)
EMULATED_COMPARE(>=, __hge)
EMULATED_COMPARE(==, __heq)
EMULATED_COMPARE(!=, __hne)
#undef EMULATED_COMPARE

inline float __half2float(half x) { return x; }
inline half __float2half(float x) { return x; }
inline half __float2half_rn(float x) { return x; }
inline half __int2half_rn(int x) { return half(double(x)); }
inline int __half2int_rn(half x) { return __float2int_rn(x); }
inline unsigned short __half_as_ushort(half x) { return emulated_bits<unsigned short>(x); }
inline half __ushort_as_half(unsigned short x) { return emulated_bits<half>(x); }
inline half __hadd(half a, half b) { return a + b; }
inline half __hsub(half a, half b) { return a - b; }
inline half __hmul(half a, half b) { return a * b; }
inline half __hdiv(half a, half b) { return a / b; }
inline half __hneg(half a) { return -a; }
inline half __habs(half a) { return half(fabsf(a)); }
inline half __hfma(half a, half b, half c) { return half(fma(double(float(a)), double(float(b)), double(float(c)))); }
inline half __hmax(half a, half b) { return half(fmaxf(a, b)); }
inline half __hmin(half a, half b) { return half(fminf(a, b)); }
#define EMULATED_HALF_FUNCTION(name, function) \
  inline half name(half x) { return half(function(float(x))); }
EMULATED_HALF_FUNCTION(hexp, expf)
EMULATED_HALF_FUNCTION(hexp2, exp2f)
EMULATED_HALF_FUNCTION(hlog, logf)
EMULATED_HALF_FUNCTION(hlog2, log2f)
EMULATED_HALF_FUNCTION(hsqrt, sqrtf)
EMULATED_HALF_FUNCTION(hrsqrt, rsqrtf)
EMULATED_HALF_FUNCTION(hsin, sinf)
EMULATED_HALF_FUNCTION(hcos, cosf)
EMULATED_HALF_FUNCTION(hfloor, floorf)
EMULATED_HALF_FUNCTION(hceil, ceilf)
EMULATED_HALF_FUNCTION(htrunc, truncf)
EMULATED_HALF_FUNCTION(hrint, rintf)
EMULATED_HALF_FUNCTION(htan, tanf)
EMULATED_HALF_FUNCTION(htanh, tanhf)
EMULATED_HALF_FUNCTION(hatan, atanf)
EMULATED_HALF_FUNCTION(herf, erff)
#undef EMULATED_HALF_FUNCTION
inline half hpow(half x, half y) { return half(powf(x, y)); }

struct __align__(4) __half2 {
  half x, y;
  __half2() = default;
  __half2(half a, half b) : x(a), y(b) {}
};
typedef __half2 half2;
inline half2 make_half2(half x, half y) { return half2(x, y); }
inline half2 __halves2half2(half x, half y) { return half2(x, y); }
inline half2 __half2half2(half x) { return half2(x, x); }
inline half2 __float2half2_rn(float x) { return half2(x, x); }
inline float2 __half22float2(half2 a) { return make_float2(a.x, a.y); }
inline half2 __floats2half2_rn(float x, float y) { return half2(x, y); }
inline half __low2half(half2 a) { return a.x; }
inline half __high2half(half2 a) { return a.y; }
inline half2 operator+(half2 a, half2 b) { return half2(a.x + b.x, a.y + b.y); }
inline half2 operator-(half2 a, half2 b) { return half2(a.x - b.x, a.y - b.y); }
inline half2 operator*(half2 a, half2 b) { return half2(a.x * b.x, a.y * b.y); }
inline half2 __hadd2(half2 a, half2 b) { return a + b; }
inline half2 __hsub2(half2 a, half2 b) { return a - b; }
inline half2 __hmul2(half2 a, half2 b) { return a * b; }
inline half2 __hfma2(half2 a, half2 b, half2 c) { return half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }
