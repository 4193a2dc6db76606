// The keys and values of a step's tokens, stored in the paged cache.
#pragma once

#include "horizon.h"

namespace mpt {
namespace MPT_ISA {

template <DType D>
class CacheWriter {
 public:
  explicit CacheWriter(const AttentionArgs& args) : a(args) {}

  // Token t's keys and values to its slot, of the heads from `first` up to `last`.
  void write(int64_t t, int64_t first, int64_t last) const {
    const int64_t slot = a.slots[t];
    if (slot < 0 || slot >= a.N * a.block) return;
    const float* k = a.qkv + t * (a.H + 2 * a.Hkv) * a.hd + a.H * a.hd;
    const float* v = k + a.Hkv * a.hd;
    for (int64_t h = first; h < last; ++h) {
      const int64_t to = (slot / a.block * a.Hkv + h) * a.block + slot % a.block;
      const vf squares = store_numbers(k + h * a.hd, a.k_pool, a.key_scales, to);
      if (a.key_norms) {
        const float scale = D == DType::kInt8 ? a.key_scales[to] : 1;
        a.key_norms[to] = length_bound(sum(squares) * scale * scale);
      }
      store_numbers(v + h * a.hd, a.v_pool, a.value_scales, to);
    }
  }

 private:
  // Stores x [hd] at `to` of a pool; returns sums of the squares of the stored numbers, of int8 ones without the scale.
  MPT_INLINE vf store_numbers(const float* x, void* pool, float* scales, int64_t to) const {
    Element<D>* at = static_cast<Element<D>*>(pool) + to * a.hd;
    float scale = 1;
    if constexpr (D == DType::kInt8) scale = scales[to] = scale_of(x);
    vf squares = {};
    for_lanes(a.hd, [&](int64_t i, int64_t n) {
      vf v = load_some<vf>(x + i, n);
      if constexpr (D == DType::kFloat32) {
        store_some(at + i, v, n);
      } else if constexpr (D == DType::kBfloat16) {
        const vh stored = to_bf16(v);
        store_some(at + i, stored, n);
        v = from_bf16(stored);
      } else {
        const vb stored = to_int8(v / scale);
        store_some(at + i, stored, n);
        v = from_int8(stored);
      }
      squares += v * v;
    });
    return squares;
  }

  // The scale of x [hd], with which its largest number is stored as 127; NaN where one is NaN, 1 where all are 0.
  float scale_of(const float* x) const {
    vf most = {}, odd = {};  // the difference of a number and itself is 0, any other is NaN
    for_lanes(a.hd, [&](int64_t i, int64_t n) {
      const vf v = load_some<vf>(x + i, n);
      most = max(most, abs(v)), odd += v - v;
    });
    const float scale = largest(most) * (1.f / 127);
    return (scale > 0 ? scale : 1.f) + sum(odd);
  }

  const AttentionArgs& a;
};

}  // namespace MPT_ISA
}  // namespace mpt
