// Vectors of 16 float32 and their bfloat16 copies, on processors with AVX512-BF16.
#pragma once

#include <immintrin.h>
#include <cstdint>

namespace training {

using Bf16 = uint16_t;
using Vector = __m512;
constexpr int kLanes = 16;

inline Vector splat(float x) { return _mm512_set1_ps(x); }
inline Vector load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }

inline Vector load(const Bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store(Bf16* p, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
}

inline float sum(Vector x) { return _mm512_reduce_add_ps(x); }

// Relative error about 2e-7; 0 far below zero.
inline Vector exp(Vector x) {
  x = _mm512_max_ps(x, splat(-120.f));
  const Vector n = _mm512_roundscale_ps(x * splat(1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector r = x - n * splat(0.693359375f) + n * splat(2.12194440e-4f);
  Vector p = splat(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    p = p * r + splat(c);
  }
  return _mm512_scalef_ps(p * r * r + r + splat(1.f), n);
}

// The exact GELU x * cdf(x) and its derivative cdf(x) + x * pdf(x), to 2e-7 (Abramowitz and Stegun 7.1.26).
inline Vector gelu(Vector x, Vector* derivative) {
  const Vector e = exp(x * x * splat(-0.5f));
  const Vector t = splat(1.f) / (splat(1.f) + _mm512_abs_ps(x) * splat(0.3275911f * 0.70710678f));
  Vector p = splat(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + splat(c);
  const Vector tail = splat(0.5f) * p * t * e;
  const Vector cdf = _mm512_mask_sub_ps(tail, _mm512_cmp_ps_mask(x, splat(0.f), _CMP_GE_OQ), splat(1.f), tail);
  *derivative = cdf + x * e * splat(0.39894228f);
  return x * cdf;
}

}  // namespace training
