// Products of matrices: bfloat16 factors with float32 sums, and float32 ones for attention.
//
// C[M, N] = A[M, K] B[K, N]. Numbers that follow each other along K are multiplied as pairs (one 32-bit word). B lies
// in panels of 32 columns, [K / 2][32] words each. A is either the rows of a matrix, or panels too: the panels of X [K,
// M], read as A, are its transpose. Every result goes, 16 columns at a time, to a function of its place.
#pragma once

#include <cstddef>

#include "vectors.h"

namespace training {

constexpr int kPanel = 32;
constexpr int kRows = 8;  // rows of C that are summed in registers together; all M are multiples of it

// Packs X [K, N] bfloat16, of `stride` numbers a row, as panels of B = X; K even, N a multiple of 32.
inline void pack_rows(const Bf16* x, int K, int N, int stride, Bf16* out) {
  alignas(64) uint16_t low[32], high[32];
  for (int i = 0; i < 16; ++i) {
    low[2 * i] = i, low[2 * i + 1] = 32 + i;
    high[2 * i] = 16 + i, high[2 * i + 1] = 48 + i;
  }
  const __m512i first = _mm512_load_si512(low), second = _mm512_load_si512(high);
  for (int n = 0; n < N; n += kPanel) {
    for (int k = 0; k < K; k += 2, out += 2 * kPanel) {
      const __m512i even = _mm512_loadu_si512(x + ptrdiff_t{k} * stride + n);
      const __m512i odd = _mm512_loadu_si512(x + ptrdiff_t{k + 1} * stride + n);
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(even, first, odd));
      _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(even, second, odd));
    }
  }
}

// Packs X [N, K] bfloat16 as panels of B = X transposed.
inline void pack_columns(const Bf16* x, int K, int N, Bf16* out) {
  const int words = K / 2;
  const __m512i rows = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                          _mm512_set1_epi32(words));
  for (int n = 0; n < N; n += kPanel) {
    for (int k = 0; k < words; ++k, out += 2 * kPanel) {
      for (int half = 0; half < 2; ++half) {
        const Bf16* from = x + ptrdiff_t{n + 16 * half} * K + 2 * k;
        _mm512_storeu_si512(out + 32 * half, _mm512_i32gather_epi32(rows, from, 4));
      }
    }
  }
}

// A matrix as the left factor: `word(m)[k * step]` is the pair k of row m.
struct Rows {
  const Bf16* x;
  int stride;
  const uint32_t* at(int m) const { return reinterpret_cast<const uint32_t*>(x + ptrdiff_t{m} * stride); }
  ptrdiff_t row() const { return stride / 2; }
  static constexpr int kStep = 1;
};

struct Transposed {
  const Bf16* panels;
  int K;
  const uint32_t* at(int m) const {
    return reinterpret_cast<const uint32_t*>(panels + ptrdiff_t{m / kPanel} * kPanel * K) + m % kPanel;
  }
  static constexpr ptrdiff_t row() { return 1; }
  static constexpr int kStep = kPanel;
};

template <typename Left, typename Use>
void multiply(const Left& a, const Bf16* panels, int M, int N, int K, const Use& use) {
  for (int n = 0; n < N; n += kPanel) {
    const Bf16* panel = panels + ptrdiff_t{n} * K;
    for (int m = 0; m < M; m += kRows) {
      const uint32_t* words = a.at(m);
      const ptrdiff_t row = a.row();
      Vector sums[kRows][2];
      for (int i = 0; i < kRows; ++i) sums[i][0] = sums[i][1] = splat(0.f);
      for (int k = 0; k < K / 2; ++k) {
        const auto b0 = (__m512bh)_mm512_loadu_si512(panel + 64 * ptrdiff_t{k});
        const auto b1 = (__m512bh)_mm512_loadu_si512(panel + 64 * ptrdiff_t{k} + 32);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const auto pair = (__m512bh)_mm512_set1_epi32(words[i * row + ptrdiff_t{k} * Left::kStep]);
          sums[i][0] = _mm512_dpbf16_ps(sums[i][0], pair, b0);
          sums[i][1] = _mm512_dpbf16_ps(sums[i][1], pair, b1);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        use(m + i, n, sums[i][0]);
        use(m + i, n + kLanes, sums[i][1]);
      }
    }
  }
}

// One block of 8 rows and 32 columns in float32: A(i, k) = a[i * row + k * step], B [K, 32] rows of `stride`.
template <typename Use>
void multiply_block(const float* a, ptrdiff_t row, ptrdiff_t step, const float* b, ptrdiff_t stride, int K,
                    const Use& use) {
  Vector sums[kRows][2];
  for (int i = 0; i < kRows; ++i) sums[i][0] = sums[i][1] = splat(0.f);
  for (int k = 0; k < K; ++k) {
    const Vector b0 = load(b + k * stride), b1 = load(b + k * stride + kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vector x = splat(a[i * row + k * step]);
      sums[i][0] = _mm512_fmadd_ps(x, b0, sums[i][0]);
      sums[i][1] = _mm512_fmadd_ps(x, b1, sums[i][1]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    use(i, 0, sums[i][0]);
    use(i, kLanes, sums[i][1]);
  }
}

}  // namespace training
