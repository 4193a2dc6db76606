// One vector type per instruction set, so that each kernel is written once.
//
// This file is compiled once per instruction set (see CMakeLists.txt); MPT_ISA names the namespace. Arithmetic is the
// compilers' vector extension (GCC, Clang); intrinsics stand only where one instruction does what no expression says.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MPT_INLINE inline __attribute__((always_inline))

namespace mpt {
namespace MPT_ISA {

#if defined(__AVX512F__)
constexpr int VL = 16;  // float32 lanes of a vector
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int VL = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int VL = 4;
constexpr int kRegisters = 32;
#else
constexpr int VL = 4;
constexpr int kRegisters = 16;
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));  // bfloat16 or float16 bits
typedef int8_t vb __attribute__((vector_size(VL)));

template <class V>
MPT_INLINE V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
MPT_INLINE void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// The first n of VL lanes, zeros behind them.
template <class V>
MPT_INLINE V load_some(const void* p, int64_t n) {
  V v = {};
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * (sizeof(V) / VL));
  return v;
}

template <class V>
MPT_INLINE void store_some(void* p, V v, int64_t n) {
  __builtin_memcpy(p, &v, static_cast<size_t>(n) * (sizeof(V) / VL));
}

MPT_INLINE vf splat(float x) { return x - vf{}; }
MPT_INLINE vi splat(int32_t x) { return x - vi{}; }

template <class To, class From>
MPT_INLINE To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To t;
  __builtin_memcpy(&t, &v, sizeof(t));
  return t;
}

MPT_INLINE vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }
MPT_INLINE vf max(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX__)
  return _mm256_max_ps(a, b);
#else
  return select(a > b, a, b);
#endif
}
MPT_INLINE vf min(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX__)
  return _mm256_min_ps(a, b);
#else
  return select(a < b, a, b);
#endif
}
MPT_INLINE vf abs(vf a) { return bits<vf>(bits<vi>(a) & 0x7fffffff); }
MPT_INLINE vf to_float(vi v) { return __builtin_convertvector(v, vf); }

// Adds up the lanes in one fixed order.
MPT_INLINE float sum(vf v) {
  float lanes[VL];
  store(lanes, v);
  for (int width = VL / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
MPT_INLINE float largest(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#elif defined(__AVX__)
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
#elif defined(__aarch64__)
  return vmaxvq_f32((float32x4_t)v);
#else
  float most = v[0];
  for (int i = 1; i < VL; ++i) most = v[i] > most ? v[i] : most;
  return most;
#endif
}

// The sums of four vectors' lanes, in one fixed order, written next to each other.
MPT_INLINE void sum4(vf a, vf b, vf c, vf d, float* out) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
  __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xB1));
  all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4E));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
#elif defined(__AVX__)
  const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#elif defined(__aarch64__)
  vst1q_f32(out, vpaddq_f32(vpaddq_f32((float32x4_t)a, (float32x4_t)b), vpaddq_f32((float32x4_t)c, (float32x4_t)d)));
#else
  out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
#endif
}

// Conversions between numbers of different sizes are intrinsics: GCC 12 makes each vector of halves or of bytes.

// bfloat16 bits <-> float32. Rounding is to nearest, ties to even, as XLA's; NaN stays NaN.
MPT_INLINE vf from_bf16(vh v) {
#if defined(__AVX512F__)
  const vu wide = bits<vu>(_mm512_cvtepu16_epi32(bits<__m256i>(v)));
#elif defined(__AVX2__)
  const vu wide = bits<vu>(_mm256_cvtepu16_epi32(bits<__m128i>(v)));
#else
  const vu wide = __builtin_convertvector(v, vu);
#endif
  return bits<vf>(wide << 16);
}
MPT_INLINE float from_bf16(uint16_t v) {
  const uint32_t u = static_cast<uint32_t>(v) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
MPT_INLINE vh to_bf16(vf v) {
#if defined(__AVX512BF16__)
  return bits<vh>(_mm512_cvtneps_pbh(v));
#else
  const vu u = bits<vu>(v);
  const vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const vu quiet = (u >> 16) | 0x40;
  const vu nan = bits<vu>(vi(v != v));
  const vu all = (rounded & ~nan) | (quiet & nan);
#if defined(__AVX512F__)
  return bits<vh>(_mm512_cvtepi32_epi16(bits<__m512i>(all)));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32(bits<__m256i>(all), bits<__m256i>(all));  // half by half
  return bits<vh>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0xD8)));
#else
  return __builtin_convertvector(all, vh);
#endif
#endif
}

// Integers <-> float32; those to be stored lie within int8's range, and are rounded to nearest, ties to even.
MPT_INLINE vf from_int8(vb v) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bits<__m128i>(v)));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bits<int64_t>(v))));
#else
  return to_float(__builtin_convertvector(v, vi));
#endif
}
// The lowest byte of each lane.
MPT_INLINE vb to_bytes(vi v) {
#if defined(__AVX512F__)
  return bits<vb>(_mm512_cvtepi32_epi8(bits<__m512i>(v)));
#else
  return __builtin_convertvector(v, vb);
#endif
}
MPT_INLINE vb to_int8(vf v) {
  const vf shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  return to_bytes(bits<vi>(v + shift) - bits<vi>(shift));
}

// Numbers in memory as float32.
template <DType D>
MPT_INLINE vf load_as_float(const void* p, int64_t index) {
  if constexpr (D == DType::kFloat32) return load<vf>(static_cast<const float*>(p) + index);
  if constexpr (D == DType::kInt8) return from_int8(load<vb>(static_cast<const int8_t*>(p) + index));
  return from_bf16(load<vh>(static_cast<const uint16_t*>(p) + index));
}
template <DType D>
MPT_INLINE vf load_some_as_float(const void* p, int64_t index, int64_t n) {
  if constexpr (D == DType::kFloat32) return load_some<vf>(static_cast<const float*>(p) + index, n);
  if constexpr (D == DType::kInt8) return from_int8(load_some<vb>(static_cast<const int8_t*>(p) + index, n));
  return from_bf16(load_some<vh>(static_cast<const uint16_t*>(p) + index, n));
}
// The same with the type known at run time only; n up to VL.
MPT_INLINE vf load_some_as_float(DType d, const void* p, int64_t index, int64_t n) {
  return d == DType::kFloat32 ? load_some_as_float<DType::kFloat32>(p, index, n)
                              : load_some_as_float<DType::kBfloat16>(p, index, n);
}

}  // namespace MPT_ISA
}  // namespace mpt
