// The ALiBi horizon: the keys that a query need not read, by proof (model/params/alibi_horizon.py has the reasoning).
//
// Score of a key at distance d: scale * q.k - slope * d, at most reach * |k| - slope * d. A query visits its keys in
// groups of kKeys, the newest first. A group is skipped where that bound shows that the sum of its weights is at most
// the share 1 - exp(-slope * kKeys) of the rest of a budget: kNegligible of the weights summed so far. Each skipped
// group leaves the share exp(-slope * kKeys) of the budget, which is also the factor by which its distance lowers the
// bound of the next: while lengths do not grow, all groups after the first skipped one are skipped too, and in any case
// the sum of the skipped weights stays within the budget.
#pragma once

#include <cmath>
#include <limits>

#include "attention_block.h"

namespace mpt {
namespace MPT_ISA {

constexpr double kNegligible = 0.95 / (1 << 25);  // half of float32's rounding, less the rounding of these comparisons
constexpr float kLengthMargin = 1.0001f;          // above the rounding of a sum of thousands of squares
constexpr float kLeastLength = 1e-17f;            // above the length of a vector whose squares underflow float32

// An upper bound of a vector's length from its float32 sum of squares; infinity where that is NaN.
inline float length_bound(float squares) {
  const float length = std::sqrt(squares) * kLengthMargin + kLeastLength;
  return length == length ? length : std::numeric_limits<float>::infinity();
}

// The term that a head of this slope adds to the logarithm of the weights summed so far.
inline float horizon_allowance(float slope) {
  if (!(slope > 0)) return -std::numeric_limits<float>::infinity();  // nothing is ever skipped
  return static_cast<float>(std::log(kNegligible * -std::expm1(-static_cast<double>(slope) * kKeys) / kKeys));
}

// A lower bound of log(x) for x >= 1, at most log(2) below it.
inline float log_below(float x) { return static_cast<float>((bits<int32_t>(x) >> 23) - 127) * 0.69314718f; }

// Whether query i has to read a group of keys that begins at `start` and whose lengths are at most `longest`.
inline bool needs(const Queries& queries, int64_t i, int64_t start, float longest, const ScoreRule& rule) {
  const int64_t distance = queries.position[i] - (start + kKeys - 1);  // to the nearest key
  if (distance <= 0) return true;
  float bound = queries.reach[i] * longest;
  if (!(bound <= std::numeric_limits<float>::max())) return true;
  if (rule.softcap > 0) bound = std::min(bound, rule.softcap * kLengthMargin);
  const float gathered = queries.top[i] + log_below(queries.total[i]);
  const float apart = queries.slope[i] * static_cast<float>(distance - queries.skipped[i]);
  return !(bound <= gathered + queries.allowance[i] + apart);  // true where anything is NaN
}

// Marks the queries that read the group; false where none does.
inline bool mark_readers(const Queries& queries, int64_t start, float longest, const ScoreRule& rule) {
  bool any = false;
  for (int64_t i = 0; i < queries.count; ++i) {
    queries.reads[i] = needs(queries, i, start, longest, rule);
    if (!queries.reads[i]) queries.skipped[i] += kKeys;
    any |= queries.reads[i] != 0;
  }
  return any;
}

}  // namespace MPT_ISA
}  // namespace mpt
