// One id per row of logits: the largest, or a random one of those that temperature, min_p, top_k and top_p keep.
//
// The definition is `model.sampling.sampler`: mask, bias and penalties change the logits; each filter sets a threshold,
// all ids at or above it stay, top_p applies to what min_p and top_k kept, and one uniform number selects the id by the
// running sum. There is no sort: ids below a bound are dropped as soon as one is known.
#pragma once

#include "threshold_search.h"
#include "vector_math.h"

namespace mpt {
namespace MPT_ISA {

class RowSampler {
  static constexpr int64_t kBlock = 256;        // candidates whose weights are summed together
  static constexpr float kWeightless = -87.3f;  // below it exp gives 0

 public:
  RowSampler(const SampleArgs& a, int64_t row) : a_(a), row_(row), logits_(a.logits + row * a.V) {}

  int32_t sample() {
    const float* x = changed_logits();
    const GroupMaxima groups(x, a_.limit);
    const float top = groups.largest_value(), temperature = a_.temperature[row_];
    if (top == -INFINITY) {
      const GroupMaxima raw(logits_, a_.limit);
      return raw.largest_value() == -INFINITY ? kNoNumber : static_cast<int32_t>(raw.largest_index());
    }
    if (!(temperature > 0) || top == INFINITY) return static_cast<int32_t>(groups.largest_index());
    // Subtracting first keeps tiny temperatures finite.
    const auto scaled = [top, temperature = std::max(temperature, 1.17549435e-38f)](auto logit) {
      return (logit - top) / temperature;
    };
    const int64_t top_k = a_.top_k[row_] > 0 && a_.top_k[row_] < a_.limit ? a_.top_k[row_] : a_.limit;
    float least = std::max(std::log(a_.min_p[row_]), kWeightless);
    if (top_k < a_.limit) least = std::max(least, scaled(groups.reached_by(top_k)));
    least = collect(x, scaled, least);
    if (n_ > top_k) {
      keep(ThresholdSearch<false>(scaled_, nullptr, n_).highest_reaching(static_cast<float>(top_k), least));
    }
    const float total = weigh();
    if (a_.top_p[row_] < 1) {
      least = ThresholdSearch<true>(scaled_, weights_, n_).highest_reaching(a_.top_p[row_] * total, least);
    }
    return ids_[draw(least)];
  }

 private:
  static constexpr int32_t kPrompt = 1 << 30;  // in a count: the prompt has the id
  static constexpr int32_t kNoNumber = -1;     // the id where no logit is a number

  // Applies the mask, bias and penalties that the row has.
  const float* changed_logits() const {
    const bool masked = a_.masked[row_], biased = a_.biased[row_];
    const float repetition = a_.repetition[row_], presence = a_.presence[row_], frequency = a_.frequency[row_];
    const bool penalised = repetition != 1 || presence != 0 || frequency != 0;
    if (!masked && !biased && !penalised) return logits_;
    thread_local Scratch scratch;
    float* changed = scratch.get<float>(a_.limit);
    const uint32_t* mask = a_.masks + row_ * ((a_.V + 31) / 32);
    const int64_t slot = std::clamp<int64_t>(a_.slot[row_], 0, a_.slots - 1);
    const float* bias = a_.bias + slot * a_.V;
    const int32_t* counts = a_.counts + slot * a_.V;
    const vi lane_bit = 1 << lane_numbers();
    for_lanes(a_.limit, [&](int64_t i, int64_t n) {
      vf x = load_some<vf>(logits_ + i, n);
      if (masked) {
        const vi word = splat(static_cast<int32_t>(mask[i / 32] >> (i % 32)));
        x = select((word & lane_bit) != 0, x, splat(-INFINITY));
      }
      if (biased) x += load_some<vf>(bias + i, n);
      if (penalised) {
        const vi count = load_some<vi>(counts + i, n);
        if (any(count > 0)) {
          const vf repeated = select(x > 0.f, x / repetition, x * repetition);
          const vi generated = count & (kPrompt - 1);
          x = select(count > 0, repeated, x) - frequency * to_float(generated);
          x -= select(generated > 0, splat(presence), vf{});
        }
      }
      store_some(changed + i, x, n);
    });
    return changed;
  }

  // Candidates: the ids whose scaled logit is at least `least`, in rising order. Returns their lowest scaled logit.
  template <class Scale>
  float collect(const float* x, Scale scaled, float least) {
    thread_local Scratch scaled_scratch, ids, weights;
    const int64_t most = a_.limit + kBlock;
    scaled_ = scaled_scratch.get<float>(most), ids_ = ids.get<int32_t>(most), weights_ = weights.get<float>(most);
    n_ = 0;
    vf low = {};
    for (int64_t i = 0; i < a_.limit; i += VL) {
      const int64_t n = std::min<int64_t>(VL, a_.limit - i);
      const vf s = scaled(load_logits(x + i, n));
      const vi kept = s >= least;
      low = min(low, select(kept, s, vf{}));
      n_ += pack_lanes(kept, s, lane_numbers() + static_cast<int32_t>(i), scaled_ + n_, ids_ + n_);
    }
    return -largest(-low);
  }

  // Drops candidates below a threshold.
  void keep(float threshold) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_; i += VL) {
      const vf s = load<vf>(scaled_ + i);
      const vi kept = (s >= threshold) & (lane_numbers() < static_cast<int32_t>(n_ - i));
      n += pack_lanes(kept, s, load<vi>(ids_ + i), scaled_ + n, ids_ + n);
    }
    n_ = n;
  }

  // Computes the candidates' weights, padded to full blocks; returns their sum.
  float weigh() {
    vf total = {};
    const int64_t padded = (n_ + kBlock - 1) / kBlock * kBlock;
    std::fill(scaled_ + n_, scaled_ + padded, -INFINITY);
    for (int64_t b = 0; b < padded; b += kBlock) {
      vf block = {};
      for (int64_t i = b; i < b + kBlock; i += VL) {
        const vf w = exp(load<vf>(scaled_ + i));
        store(weights_ + i, w);
        block += w;
      }
      total += block;
    }
    return sum(total);
  }

  // The first candidate at which the running sum of weights exceeds uniform * total; the last one with weight where
  // rounding leaves none. Candidates below the threshold have none. Sums go by blocks first, then within one.
  int64_t draw(float threshold) {
    thread_local Scratch scratch;
    const int64_t blocks = (n_ + kBlock - 1) / kBlock;
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

  const SampleArgs& a_;
  int64_t row_;
  const float* logits_;
  int64_t n_ = 0;             // candidates
  float* scaled_ = nullptr;   // [n] (logit - top) / temperature <= 0
  int32_t* ids_ = nullptr;    // [n]
  float* weights_ = nullptr;  // [n] exp(scaled)
};

inline void sample(const SampleArgs& a, Pool& pool) {
  auto row = [&](int64_t r) { a.ids[r] = RowSampler(a, r).sample(); };
  const int threads = a.S * a.V < 50'000 ? 1 : pool.threads();
  run_phase(pool, threads, phase(a.S, row));
}

}  // namespace MPT_ISA
}  // namespace mpt
