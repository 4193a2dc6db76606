// How one step of a product reads packed weights and prepared inputs, for each weight format.
//
// Packed weights lie in panels of 32 output features. One step holds, for each feature of its panel, the four bytes
// that are multiplied with the same four bytes of an input row: one float32, two bfloat16 or four int8 numbers (int4:
// two bytes). So weights stream through in the order of their use, and a vector's lanes are features.
#pragma once

#include "simd.h"

namespace mpt {
namespace MPT_ISA {

constexpr int kPair = 2;  // vectors of weights that are multiplied with an input at a time: 2 VL features

// sum + the four products of unsigned bytes w and signed bytes x, lane by lane
MPT_INLINE vi dot4(vi sum, vi w, vi x) {
#if defined(__AVX512VNNI__)
  return bits<vi>(_mm512_dpbusd_epi32(bits<__m512i>(sum), bits<__m512i>(w), bits<__m512i>(x)));
#elif defined(__AVX512BW__)
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(bits<__m512i>(w), _mm512_set1_epi16(255)),
                                         _mm512_srai_epi16(_mm512_slli_epi16(bits<__m512i>(x), 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(bits<__m512i>(w), 8), _mm512_srai_epi16(bits<__m512i>(x), 8));
  return sum + bits<vi>(even) + bits<vi>(odd);
#elif defined(__AVX2__)
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(bits<__m256i>(w), _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(bits<__m256i>(x), 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(bits<__m256i>(w), 8), _mm256_srai_epi16(bits<__m256i>(x), 8));
  return sum + bits<vi>(even) + bits<vi>(odd);
#else
  for (int byte = 0; byte < 4; ++byte) sum += ((w >> (8 * byte)) & 255) * ((x << (24 - 8 * byte)) >> 24);
  return sum;
#endif
}

MPT_INLINE vf from_f16(const uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load<__m256i>(p));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load<__m128i>(p));
#elif defined(__aarch64__)
  return (vf)vcvt_f32_f16(load<float16x4_t>(p));
#else
  // Exponent and fraction moved to float32's places, then scaled: right for subnormal numbers too. No inf, no NaN.
  const vu u = __builtin_convertvector(load<vh>(p), vu);
  const vf magnitude = bits<vf>((u & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112
  return bits<vf>(bits<vu>(magnitude) | ((u & 0x8000) << 16));
#endif
}

struct Float32Weights {
  using Sum = vf;
  static constexpr bool kQuantised = false, kGrouped = false;
  static constexpr int kInputs = 1;        // per step
  static constexpr int kPanelBytes = 128;  // per step
  using W = vf;
  static MPT_INLINE void weights(const uint8_t* p, W (&w)[kPair]) { w[0] = load<vf>(p), w[1] = load<vf>(p + 4 * VL); }
  static MPT_INLINE Sum add(Sum sum, uint32_t x, W w) { return bits<vf>(splat(static_cast<int32_t>(x))) * w + sum; }
};

struct Bfloat16Weights {
  using Sum = vf;
  static constexpr bool kQuantised = false, kGrouped = false;
  static constexpr int kInputs = 2;
  static constexpr int kPanelBytes = 128;
#if defined(__AVX512BF16__)
  using W = __m512bh;
  static MPT_INLINE void weights(const uint8_t* p, W (&w)[kPair]) { w[0] = load<W>(p), w[1] = load<W>(p + 4 * VL); }
  static MPT_INLINE Sum add(Sum sum, uint32_t x, W w) {
    return _mm512_dpbf16_ps(sum, bits<W>(splat(static_cast<int32_t>(x))), w);
  }
#else
  struct W {
    vf even, odd;
  };
  static MPT_INLINE void weights(const uint8_t* p, W (&w)[kPair]) {
    for (int i = 0; i < kPair; ++i) {
      const vu pairs = load<vu>(p + i * 4 * VL);
      w[i] = {bits<vf>(pairs << 16), bits<vf>(pairs & 0xffff0000u)};
    }
  }
  static MPT_INLINE Sum add(Sum sum, uint32_t x, W w) {
    const vf even = bits<vf>(splat(static_cast<int32_t>(x << 16)));
    const vf odd = bits<vf>(splat(static_cast<int32_t>(x & 0xffff0000u)));
    return odd * w.odd + (even * w.even + sum);
  }
#endif
};

// Bytes w + 128; inputs are signed bytes. The offset is taken back where a group's sum begins.
struct Int8Weights {
  using Sum = vi;
  static constexpr bool kQuantised = true, kGrouped = false;
  static constexpr int kInputs = 4;
  static constexpr int kPanelBytes = 128;
  static constexpr int kOffset = 128;
  using W = vi;
  static MPT_INLINE void weights(const uint8_t* p, W (&w)[kPair]) { w[0] = load<vi>(p), w[1] = load<vi>(p + 4 * VL); }
  static MPT_INLINE Sum add(Sum sum, uint32_t x, W w) { return dot4(sum, w, splat(static_cast<int32_t>(x))); }
};

// Nibbles w + 8: a byte holds a number of one of the panel's first 16 features below, of one of the last 16 above.
// A pair of vectors is therefore VL features from each half. For few rows numbers above stay where they are, as 16
// times themselves: the scale takes that back, and a power of two rounds nothing. More rows share the cost of moving
// them.
struct Int4Weights : Int8Weights {
  static constexpr bool kGrouped = true;
  static constexpr int kPanelBytes = 64;
  static constexpr int kOffset = 8;
  static MPT_INLINE void weights(const uint8_t* p, W (&w)[kPair]) {
    const vu bytes = load<vu>(p);
    w[0] = bits<vi>(bytes & 0x0f0f0f0fu), w[1] = bits<vi>(bytes & 0xf0f0f0f0u);
  }
  static MPT_INLINE void weights_for_many(const uint8_t* p, W (&w)[kPair]) {
    const vu bytes = load<vu>(p);
    w[0] = bits<vi>(bytes & 0x0f0f0f0fu), w[1] = bits<vi>((bytes >> 4) & 0x0f0f0f0fu);
  }
};

// The first feature, within its panel, of vector v of pass p over the panel.
template <class Format>
constexpr int feature(int p, int v) {
  return Format::kGrouped ? p * VL + v * 16 : (p * kPair + v) * VL;
}

// By how much the weights of vector v of a pair, for few rows or many, are larger than the numbers that they stand for.
template <class Format>
constexpr int multiple(int v, bool few) {
  return Format::kGrouped && few && v == 1 ? 16 : 1;
}

}  // namespace MPT_ISA
}  // namespace mpt
