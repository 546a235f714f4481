// mma.sync of four bits: each lane gives its words of both factors, a product is made where all 32 lanes have come.
#pragma once
#include "cuda_builtins.h"

namespace emulated {

struct FourBits {
  int* d;
  unsigned a[4], b[2];
};

inline int unsigned_four(unsigned word, int place) { return word >> 4 * place & 15; }
inline int signed_four(unsigned word, int place) { return (unsigned_four(word, place) ^ 8) - 8; }

// Rows first; lane 4 · i + j has of A the rows i and i + 8, of B the column i, eight neighbours from 8 · j and from
// 32 + 8 · j on; of the sums the columns 2 · j and 2 · j + 1 in the same rows (PTX ISA, "Matrix fragments for
// mma.m16n8k64").
__attribute__((no_sanitize("thread"))) void multiply_m16n8k64_u4_s4(void** lanes, unsigned mask) {
  if (mask != ~0u) fail("warp divergence", nullptr, "a matrix product by the lanes %08x only", mask);
  int a[16][64], b[64][8];
  for (int lane = 0; lane < 32; ++lane) {
    auto* own = static_cast<FourBits*>(lanes[lane]);
    int i = lane / 4, j = lane % 4;
    for (int word = 0; word < 4; ++word)
      for (int place = 0; place < 8; ++place)
        a[i + word % 2 * 8][word / 2 * 32 + 8 * j + place] = unsigned_four(own->a[word], place);
    for (int word = 0; word < 2; ++word)
      for (int place = 0; place < 8; ++place) b[word * 32 + 8 * j + place][i] = signed_four(own->b[word], place);
  }
  unsigned sums[16][8] = {};  // which wrap as the device's do
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 64; ++k)
      for (int j = 0; j < 8; ++j) sums[i][j] += unsigned(a[i][k] * b[k][j]);
  for (int lane = 0; lane < 32; ++lane) {
    int* d = static_cast<FourBits*>(lanes[lane])->d;
    for (int i = 0; i < 4; ++i) d[i] = int(unsigned(d[i]) + sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
  }
}

}  // namespace emulated

inline void mma_m16n8k64_u4_s4(int* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1,
                               unsigned line = __builtin_LINE()) {
  emulated::FourBits own = {d, {a0, a1, a2, a3}, {b0, b1}};
  emulated::collective(1001, line, ~0u, &own, emulated::multiply_m16n8k64_u4_s4);
}
