// Log probabilities of ids and of the most likely ones; the definition is `model.sampling.logprobs`.
#pragma once

#include "candidates.h"
#include "vector_math.h"

namespace mpt {
namespace MPT_ISA {

class RowLogprobs {
  static constexpr int64_t kBlock = 32 * VL;  // summed separately, so that small numbers keep their digits

 public:
  RowLogprobs(const LogprobsArgs& a, int64_t row) : a_(a), row_(row), logits_(a.logits + row * a.V) {}

  void write() {
    int32_t* ids = a_.top_ids + row_ * a_.most;
    float* logprobs = a_.top_logprobs + row_ * a_.most;
    std::fill(ids, ids + a_.most, 0);
    std::fill(logprobs, logprobs + a_.most, 0.f);
    a_.logprob[row_] = 0, a_.rank[row_] = 0;
    const int64_t requested = std::min<int64_t>(a_.num_logprobs[row_], a_.most);
    if (requested < 0) return;
    const GroupMaxima groups(logits_, a_.limit);
    top_ = groups.largest_value();
    for (int64_t i = a_.limit; i < a_.V; ++i) top_ = std::max(top_, number(logits_[i]));
    const float chosen = number(logits_[std::clamp<int64_t>(a_.ids[row_], 0, a_.V - 1)]);
    a_.rank[row_] = 1 + add_up(chosen);
    if (top_ == -INFINITY) log_total_ = NAN;  // no logit is a number, and no log probability either
    a_.logprob[row_] = logprob(chosen);
    const int64_t listed = list(groups, requested, ids, logprobs);
    std::fill(ids + listed, ids + requested, -1);
    std::fill(logprobs + listed, logprobs + requested, -INFINITY);
  }

 private:
  static MPT_INLINE float number(float x) { return x == x ? x : -INFINITY; }

  // The log probability of a logit. One function for the id and for the list, so that both hold the same number.
  float logprob(float logit) const { return (logit == top_ ? 0.f : logit - top_) - log_total_; }

  // Sets the total of the exponentials, and returns the number of logits above `chosen`.
  int32_t add_up(float chosen) {
    vf total = {};
    vi above = {};
    const vf none = splat(-INFINITY);
    auto add = [&](vf x, vf& to) {
      x = select(x == x, x, none);
      above -= vi(x > chosen);
      to += exp(select(x == top_, vf{}, x - top_));
    };
    int64_t i = 0;
    for (; i + kBlock <= a_.V; i += kBlock) {
      vf even = {}, odd = {};
      for (int64_t j = i; j < i + kBlock; j += 2 * VL) {
        add(load<vf>(logits_ + j), even);
        add(load<vf>(logits_ + j + VL), odd);
      }
      total += even + odd;
    }
    for (; i < a_.V; i += VL) {
      const int64_t n = std::min<int64_t>(VL, a_.V - i);
      vf more = total;
      add(load_logits(logits_ + i, n), more);
      total = select(lane_numbers() < static_cast<int32_t>(n), more, total);
    }
    log_total_ = static_cast<float>(std::log(static_cast<double>(sum(total))));
    int32_t count = 0;
    for (int j = 0; j < VL; ++j) count += above[j];
    return count;
  }

  // The `count` largest logits below the limit, by falling logit, then by rising id; returns how many there are.
  int64_t list(const GroupMaxima& groups, int64_t count, int32_t* ids, float* logprobs) const {
    if (count == 0) return 0;
    const float least = groups.reached_by(count);
    float* logits = logprobs;  // until the list is complete
    int64_t listed = 0;
    for_lanes(a_.limit, [&](int64_t i, int64_t n) {
      if (n == VL && !any(~vi(load<vf>(logits_ + i) < least))) return;
      for (int64_t id = i; id < i + n; ++id) {
        const float x = number(logits_[id]);
        if (x < least || (listed == count && !(x > logits[count - 1]))) continue;
        int64_t at = listed < count ? listed++ : count - 1;
        for (; at > 0 && x > logits[at - 1]; --at) logits[at] = logits[at - 1], ids[at] = ids[at - 1];
        logits[at] = x, ids[at] = static_cast<int32_t>(id);
      }
    });
    for (int64_t j = 0; j < listed; ++j) logprobs[j] = logprob(logits[j]);
    return listed;
  }

  const LogprobsArgs& a_;
  int64_t row_;
  const float* logits_;
  float top_ = 0, log_total_ = 0;
};

inline void log_probabilities(const LogprobsArgs& a, Pool& pool) {
  auto row = [&](int64_t r) { RowLogprobs(a, r).write(); };
  const int threads = a.S * a.V < 50'000 ? 1 : pool.threads();
  run_phase(pool, threads, phase(a.S, row));
}

}  // namespace MPT_ISA
}  // namespace mpt
