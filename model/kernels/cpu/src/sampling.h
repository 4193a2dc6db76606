// One id per row of logits: the largest, or a draw from what temperature, min_p, top_k and top_p leave.
//
// The definition is `mpt_serve.engine.sampler`: each filter sets a threshold, all ids at or above it stay, top_p sees
// what min_p and top_k left, and one uniform number picks the id by its place in the running sum. Thresholds are found
// by halving the range of float32 bit patterns, a pass over the row at a time; there is no sort.
#pragma once

#include <algorithm>
#include <cmath>

#include "rows.h"
#include "vector_math.h"

namespace mpt {
namespace MPT_ISA {

class RowSampler {
  static constexpr int64_t kBlock = 256;  // ids whose weights are added up before any of them is looked at

 public:
  RowSampler(const SampleArgs& a, int64_t row) : a_(a), row_(row), logits_(a.logits + row * a.V) {}

  int32_t sample() {
    const int64_t greedy = first_largest();
    const float temperature = a_.temperature[row_];
    if (!(temperature > 0)) return static_cast<int32_t>(greedy);
    thread_local Scratch scaled, weights;
    scaled_ = scaled.get<float>(padded());
    weights_ = weights.get<float>(padded());
    scale(logits_[greedy], std::max(temperature, 1.17549435e-38f));
    float threshold = std::log(a_.min_p[row_]);
    const int32_t top_k = a_.top_k[row_];
    if (top_k > 0 && top_k < a_.limit) {
      threshold = std::max(threshold, highest_reaching<true>(static_cast<float>(top_k), threshold));
    }
    if (a_.top_p[row_] < 1) {
      const float all = kept<false>(threshold, threshold);
      threshold = std::max(threshold, highest_reaching<false>(a_.top_p[row_] * all, threshold));
    }
    const int64_t drawn = draw(threshold);
    return static_cast<int32_t>(drawn < 0 ? greedy : drawn);
  }

 private:
  int64_t padded() const { return (a_.limit + kBlock - 1) / kBlock * kBlock; }

  int64_t first_largest() const {
    vf top = splat(-INFINITY);
    int64_t whole = a_.limit / VL * VL;
    for (int64_t i = 0; i < whole; i += VL) top = max(load<vf>(logits_ + i), top);
    float most = largest(top);
    for (int64_t i = whole; i < a_.limit; ++i) most = std::max(most, logits_[i]);
    int64_t at = 0;
    while (at + VL <= whole && !any(load<vf>(logits_ + at) == most)) at += VL;
    while (at < a_.limit && logits_[at] != most) ++at;
    return at < a_.limit ? at : 0;  // 0: nothing but NaN
  }

  // scaled = (logit - top) / temperature <= 0, weights = exp(scaled); beyond the vocabulary nothing has weight.
  // Subtracting first keeps tiny temperatures finite.
  void scale(float top, float temperature) {
    std::fill(scaled_ + a_.limit, scaled_ + padded(), -INFINITY);
    std::copy(logits_, logits_ + a_.limit, scaled_);
    for (int64_t i = 0; i < padded(); i += VL) {
      const vf s = (load<vf>(scaled_ + i) - top) / temperature;
      store(scaled_ + i, s);
      store(weights_ + i, exp(s));
    }
  }

  // How many ids, or how much weight, lie at or above both thresholds.
  template <bool kCount>
  float kept(float threshold, float also) const {
    const float least = std::max(threshold, also);
    vf total[4] = {};  // chains of additions side by side
    for (int64_t i = 0; i < padded(); i += 4 * VL) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const vi above = load<vf>(scaled_ + i + j * VL) >= least;
        const vf value = kCount ? splat(1.f) : load<vf>(weights_ + i + j * VL);
        total[j] += bits<vf>(bits<vi>(value) & above);
      }
    }
    return sum((total[0] + total[1]) + (total[2] + total[3]));
  }

  // The highest of all float32 numbers <= 0 at which what is kept still reaches the target.
  template <bool kCount>
  float highest_reaching(float target, float threshold) const {
    // Magnitudes of numbers <= 0 as bit patterns: a larger one is a lower number.
    uint32_t reaches = 0x7f800000, misses = 0;
    for (float reached = -1; reaches - misses > 1 && reached != target;) {
      const uint32_t middle = misses + (reaches - misses) / 2;
      const float k = kept<kCount>(negative(middle), kCount ? -INFINITY : threshold);
      if (k >= target) {
        reaches = middle, reached = k;
      } else {
        misses = middle;
      }
    }
    // 0 itself is never tried: where everything above it misses, it is the largest that can be asked for.
    if (reaches == 1 && kept<kCount>(0, kCount ? -INFINITY : threshold) >= target) return 0;
    return negative(reaches);
  }

  static float negative(uint32_t magnitude) {
    magnitude |= 0x80000000u;
    float f;
    std::memcpy(&f, &magnitude, 4);
    return f;
  }

  // The first id at which the running sum of weights exceeds uniform * total; the last one with weight where rounding
  // leaves none; -1 where there is no weight, or one is not finite. Sums go by blocks first, then within one.
  int64_t draw(float threshold) {
    thread_local Scratch scratch;
    const int64_t blocks = padded() / kBlock;
    float* sums = scratch.get<float>(blocks);
    float total = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      vf block = {};
      for (int64_t i = b * kBlock; i < (b + 1) * kBlock; i += VL) {
        const vf w = select(load<vf>(scaled_ + i) >= threshold, load<vf>(weights_ + i), vf{});
        store(weights_ + i, w);
        block += w;
      }
      sums[b] = sum(block);
      total += sums[b];
    }
    if (!(total > 0) || !std::isfinite(total)) return -1;
    float rest = a_.uniform[row_] * total;
    const int64_t block = first_above(sums, blocks, &rest);
    return block * kBlock + first_above(weights_ + block * kBlock, kBlock, &rest);
  }

  static int64_t first_above(const float* weights, int64_t count, float* target) {
    int64_t last = 0;
    float running = 0, before = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (weights[i] > 0) {
        last = i, before = running;
        running += weights[i];
        if (running > *target) break;
      }
    }
    *target = std::max(*target - before, 0.f);
    return last;
  }

  static MPT_INLINE bool any(vi mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(bits<__m512i>(mask)) != 0;
#else
    int32_t found = 0;
    for (int i = 0; i < VL; ++i) found |= mask[i];
    return found != 0;
#endif
  }

  const SampleArgs& a_;
  int64_t row_;
  const float* logits_;
  float* scaled_ = nullptr;   // [padded]
  float* weights_ = nullptr;  // [padded]
};

inline void sample(const SampleArgs& a, Pool& pool) {
  auto row = [&](int64_t r) { a.ids[r] = RowSampler(a, r).sample(); };
  const int threads = a.R * a.V < 200'000 ? 1 : pool.threads();
  run_phases(pool, threads, phase(a.R, row));
}

}  // namespace MPT_ISA
}  // namespace mpt
