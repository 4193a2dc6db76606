// Finds the largest of many numbers without sorting them: bounds from the maxima of small groups, and compaction of the
// remaining ids.
#pragma once

#include <algorithm>
#include <cmath>

#include "rows.h"

namespace mpt {
namespace MPT_ISA {

MPT_INLINE bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bits<__m512i>(mask)) != 0;
#elif defined(__AVX__)
  return _mm256_movemask_ps(bits<__m256>(mask)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(bits<__m128>(mask)) != 0;
#else
  int32_t found = 0;
  for (int i = 0; i < VL; ++i) found |= mask[i];
  return found != 0;
#endif
}

// Writes the lanes of a and of b where the mask is set next to each other, and returns their number. Up to VL of each
// are written over.
template <class A, class B>
MPT_INLINE int64_t pack_lanes(vi mask, A a, B b, void* a_out, void* b_out) {
#if defined(__AVX512F__)
  const __mmask16 lanes = _mm512_movepi32_mask(bits<__m512i>(mask));
  store(a_out, _mm512_maskz_compress_epi32(lanes, bits<__m512i>(a)));
  store(b_out, _mm512_maskz_compress_epi32(lanes, bits<__m512i>(b)));
  return __builtin_popcount(lanes);
#else
  if (!any(mask)) return 0;
  int64_t n = 0;
  for (int i = 0; i < VL; ++i) {
    store(static_cast<char*>(a_out) + 4 * n, a[i]);
    store(static_cast<char*>(b_out) + 4 * n, b[i]);
    n -= mask[i];
  }
  return n;
#endif
}

MPT_INLINE vi lane_numbers() {
  vi v;
  for (int i = 0; i < VL; ++i) v[i] = i;
  return v;
}

// The first n of VL lanes, -infinity behind them.
MPT_INLINE vf load_logits(const float* p, int64_t n) {
  return n == VL ? load<vf>(p)
                 : select(lane_numbers() < static_cast<int32_t>(n), load_some<vf>(p, n), splat(-INFINITY));
}

// A row of numbers, NaN counting as -infinity, with the maximum of each group of 16: lane j of the vectors of a block
// is group j of that block.
class GroupMaxima {
 public:
  static constexpr int64_t kGroup = 16, kBlock = kGroup * VL;

  GroupMaxima(const float* x, int64_t count) : x_(x), count_(count) {
    thread_local Scratch scratch;
    maxima_ = scratch.get<float>(blocks() * VL);
    vf top = splat(-INFINITY);
    for (int64_t b = 0; b < blocks(); ++b) {
      vf most = splat(-INFINITY);
      const int64_t end = std::min(count_, (b + 1) * kBlock);
      int64_t i = b * kBlock;
      for (; i + VL <= end; i += VL) most = max(load<vf>(x_ + i), most);  // the second argument where the first is NaN
      if (i < end) most = max(load_logits(x_ + i, end - i), most);
      store(maxima_ + b * VL, most);
      top = max(most, top);
    }
    largest_ = largest(top);
  }

  float largest_value() const { return largest_; }

  // The lowest index of the largest number; 0 where all are -infinity.
  int64_t largest_index() const {
    if (largest_ == -INFINITY) return 0;
    int64_t at = 0;
    while (!any(load<vf>(maxima_ + at * VL) == largest_)) ++at;
    at *= kBlock;
    while (x_[at] != largest_) ++at;
    return at;
  }

  // A number that at least k of the row reach: the k-th largest maximum; -infinity where there are fewer groups.
  float reached_by(int64_t k) const {
    if (k > blocks() * VL) return -INFINITY;
    int64_t low = key(-INFINITY), high = int64_t{key(largest_)} + 1;  // low is reached, high is not
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      if (groups_reaching(value(static_cast<int32_t>(middle))) >= k) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return value(static_cast<int32_t>(low));
  }

 private:
  int64_t blocks() const { return (count_ + kBlock - 1) / kBlock; }

  int64_t groups_reaching(float least) const {
    vi reached = {};
    for (int64_t b = 0; b < blocks(); ++b) reached -= vi(load<vf>(maxima_ + b * VL) >= least);
    int64_t total = 0;
    for (int i = 0; i < VL; ++i) total += reached[i];
    return total;
  }

  // Integers in the order of the numbers.
  static int32_t key(float x) {
    int32_t i;
    std::memcpy(&i, &x, 4);
    return i < 0 ? i ^ 0x7fffffff : i;
  }
  static float value(int32_t key) {
    key = key < 0 ? key ^ 0x7fffffff : key;
    float x;
    std::memcpy(&x, &key, 4);
    return x;
  }

  const float* x_;
  int64_t count_;
  float* maxima_;  // [blocks, VL]
  float largest_;
};

}  // namespace MPT_ISA
}  // namespace mpt
