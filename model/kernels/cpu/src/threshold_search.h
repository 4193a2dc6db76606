// Finds the highest threshold <= 0 at which the numbers that reach it still add up to a target.
//
// The range of possible thresholds is halved by passes over the undecided numbers: those in the range. Numbers above it
// are summed once and dropped from then on, as are those below it.
#pragma once

#include "candidates.h"

namespace mpt {
namespace MPT_ISA {

template <bool kWeighted>  // otherwise numbers are counted
class ThresholdSearch {
  static constexpr int64_t kBlock = 64 * VL;  // summed separately, so that small numbers keep their digits

 public:
  // scaled [n], all from `lowest` to 0; weights [n] > 0. The vector that holds the last of them is read as a whole.
  ThresholdSearch(const float* scaled, const float* weights, int64_t n) : scaled_(scaled), weights_(weights), n_(n) {}

  float highest_reaching(float target, float lowest) {
    // Thresholds as keys: 1 for 0, 2 for the next float32 below it, and so on. `misses` is one at which the target is
    // missed, 0 standing for a threshold that keeps nothing; at `reaches`, which at first keeps all, it is reached.
    int64_t misses = 0, reaches = key(lowest);
    Sum kept_by_misses, kept_by_reaches{0, n_};
    for (int round = 0; reaches - misses > 1; ++round) {
      const int64_t middle = middle_of(misses, reaches, round);
      const Sum kept = add_up(value(middle));
      const float reached = above_ + kept.weight;
      if (reached >= target) {
        reaches = middle, kept_by_reaches = kept;
        if (reached == target) break;
      } else {
        misses = middle, kept_by_misses = kept;
      }
      const int64_t undecided = kept_by_reaches.count - kept_by_misses.count;
      if (undecided == 0) break;
      if (undecided <= n_ / 4 * 3) {
        leave(value(reaches), misses ? value(misses) : INFINITY);
        above_ += kept_by_misses.weight;
        kept_by_misses = {}, kept_by_reaches = {0, n_};
      }
    }
    return value(reaches);
  }

 private:
  struct Sum {
    float weight = 0;
    int64_t count = 0;
  };

  static int64_t key(float x) {
    uint32_t magnitude;
    std::memcpy(&magnitude, &x, 4);
    return int64_t{magnitude & 0x7fffffff} + 1;
  }
  static float value(int64_t key) {
    const uint32_t negative = static_cast<uint32_t>(key - 1) | 0x80000000u;
    float x;
    std::memcpy(&x, &negative, 4);
    return x;
  }

  // Halving the range of values drops more numbers than halving that of keys, but may not terminate.
  int64_t middle_of(int64_t misses, int64_t reaches, int round) const {
    if (round >= 12 || n_ < 256) return (misses + reaches) / 2;
    const float middle = 0.5f * ((misses ? value(misses) : 0.f) + value(reaches));
    return std::clamp(key(middle), misses + 1, reaches - 1);
  }

  Sum add_up(float threshold) const {
    vf weight[4] = {};  // chains of additions side by side
    vi count[4] = {};
    int64_t i = 0;
    for (; i + kBlock <= n_; i += kBlock) {
      vf block[4] = {};
      for (int64_t stop = i + kBlock, k = i; k < stop; k += 4 * VL) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const vi kept = load<vf>(scaled_ + k + j * VL) >= threshold;
          count[j] -= kept;
          if (kWeighted) block[j] += bits<vf>(load<vi>(weights_ + k + j * VL) & kept);
        }
      }
      for (int j = 0; j < 4; ++j) weight[j] += block[j];
    }
    for (; i < n_; i += VL) {
      const vi kept = (load<vf>(scaled_ + i) >= threshold) & (lane_numbers() < static_cast<int32_t>(n_ - i));
      count[0] -= kept;
      if (kWeighted) weight[0] += bits<vf>(load<vi>(weights_ + i) & kept);
    }
    const vi counts = (count[0] + count[1]) + (count[2] + count[3]);
    Sum total;
    for (int j = 0; j < VL; ++j) total.count += counts[j];
    total.weight = kWeighted ? sum((weight[0] + weight[1]) + (weight[2] + weight[3])) : static_cast<float>(total.count);
    return total;
  }

  // Continues with only the numbers from `low` on and below `high`.
  void leave(float low, float high) {
    thread_local Scratch scaled, weights;
    float* s = scaled.get<float>(n_ + VL);
    float* w = weights.get<float>(n_ + VL);
    int64_t n = 0;
    for (int64_t i = 0; i < n_; i += VL) {
      const vf x = load<vf>(scaled_ + i);
      const vi inside = (x >= low) & (x < high) & (lane_numbers() < static_cast<int32_t>(n_ - i));
      n += pack_lanes(inside, x, kWeighted ? load<vf>(weights_ + i) : x, s + n, w + n);
    }
    scaled_ = s, weights_ = w, n_ = n;
  }

  const float* scaled_;
  const float* weights_;
  int64_t n_;
  float above_ = 0;  // sum of the numbers dropped above the range
};

}  // namespace MPT_ISA
}  // namespace mpt
