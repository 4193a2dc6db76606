// The inner loops of paged attention: a few queries of one head against one block of keys, by a running softmax
// (Milakov and Gimelshein 2018).
//
// A query's result is one chain of operations, independent of the queries beside it: a score is a vector of partial
// sums along the head's features, summed in one order; a block's exponentials are added lane by lane; values are added
// key by key. Keys that a query does not see have no effect, whatever they contain.
#pragma once

#include <algorithm>
#include <type_traits>

#include "rows.h"
#include "vector_math.h"

namespace mpt {
namespace MPT_ISA {

constexpr int64_t kKeys = 128;  // keys of a block, which begins at a multiple of it; a multiple of VL
constexpr int kQueries = kRegisters == 32 ? 4 : 3;  // queries that share the loads of keys and values
constexpr int kKeysAtOnce = 4;                      // and keys that share the loads of queries
constexpr float kUnseen = -3.4028235e38f;           // finite: the difference of two is a number

template <DType D>
using Element =
    std::conditional_t<D == DType::kFloat32, float, std::conditional_t<D == DType::kInt8, int8_t, uint16_t>>;

// Keys and values that lie next to each other, `stride` elements apart: those from `begin` to `end` of a block.
struct KeyRun {
  const void* k;
  const void* v;
  int64_t begin, end, stride;
  const char* ahead;  // what to fetch meanwhile, as many bytes as the run's keys or values have; or null
};

struct KeyBlock {
  int64_t start;            // position of its first key
  const float* key_scales;  // [kKeys] factors of its keys and values, or null
  const float* value_scales;
  int runs;
  KeyRun run[kKeys];
};

// How a dot product becomes a score.
struct ScoreRule {
  float scale;
  float softcap;   // 0 for none
  int64_t window;  // negative for none
};

struct KeyRange {
  int64_t begin, end;
  MPT_INLINE bool empty() const { return begin >= end; }
};

// The queries of a tile with one head of keys, and their sums so far. `width` is the head's features in whole vectors,
// with zeros behind the last.
struct Queries {
  int64_t count, width;
  float* q;           // [count, width]
  float* values;      // [count, width]: sums of weight * value
  float* top;         // [count] the largest score
  float* total;       // [count] sums of weights, relative to the top
  float* slope;       // [count] of ALiBi
  int32_t* position;  // [count]
  KeyRange* seen;     // [count] keys of the current block that the query sees
  // For skipping keys (horizon.h).
  float* reach;      // [count] bound of a score for keys of length 1
  float* allowance;  // [count]
  int32_t* skipped;  // [count] keys skipped so far
  int32_t* reads;    // [count] whether the query reads the current block
};

// Fetches what is used soon, into the first-level cache (3) or the second one (2). Blocks are scattered, so that the
// processor cannot predict them.
template <int Level>
MPT_INLINE void fetch(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, Level);
}

// Finds the keys of the block from `start` on that each query sees.
inline void look(const Queries& queries, int64_t start, const ScoreRule& rule) {
  for (int64_t i = 0; i < queries.count; ++i) {
    const int64_t position = queries.position[i], oldest = rule.window < 0 ? 0 : position - rule.window;
    const KeyRange seen = {std::max<int64_t>(oldest - start, 0), std::min(position + 1 - start, kKeys)};
    queries.seen[i] = queries.reads[i] && !seen.empty() ? seen : KeyRange{0, 0};
  }
}

// Calls f(R, i) for all queries: R of them, as a type's value, from i on, which share the loads of keys and values.
template <class F>
MPT_INLINE void for_queries(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kQueries <= count; i += kQueries) f(std::integral_constant<int, kQueries>(), i);
  if constexpr (kQueries > 2) {
    for (; i + 2 <= count; i += 2) f(std::integral_constant<int, 2>(), i);
  }
  if (i < count) f(std::integral_constant<int, 1>(), i);
}

// Dot products of R queries and C keys.
template <DType D, int R, int C>
MPT_INLINE void dot_products(const float* q, int64_t width, const Element<D>* k, int64_t stride, float* scores) {
  vf acc[R][C] = {};
  for (int64_t d = 0; d < width; d += VL) {
    vf ks[C];
    for (int c = 0; c < C; ++c) ks[c] = load_as_float<D>(k, c * stride + d);
    for (int r = 0; r < R; ++r) {
      const vf x = load<vf>(q + r * width + d);
      for (int c = 0; c < C; ++c) acc[r][c] = x * ks[c] + acc[r][c];
    }
  }
  for (int r = 0; r < R; ++r) {
    float sums[4];
    if constexpr (C == 4) {
      sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], sums);
    } else {
      sum4(acc[r][0], vf{}, vf{}, vf{}, sums);
    }
    for (int c = 0; c < C; ++c) scores[r * kKeys + c] = sums[c];
  }
}

// Dot products of R queries from i on and the keys of a run that any of them sees, into scores [R, kKeys].
template <DType D, int R>
__attribute__((noinline)) void score_run(const Queries& queries, int64_t i, const KeyRun& run, float* scores) {
  KeyRange any = {kKeys, 0};
  for (int r = 0; r < R; ++r) {
    const KeyRange& seen = queries.seen[i + r];
    if (!seen.empty()) any = {std::min(any.begin, seen.begin), std::max(any.end, seen.end)};
  }
  const int64_t end = std::min(any.end, run.end);
  const Element<D>* k = static_cast<const Element<D>*>(run.k) - run.begin * run.stride;
  const float* q = queries.q + i * queries.width;
  const int64_t bytes = run.stride * sizeof(Element<D>);
  int64_t key = std::max(any.begin, run.begin);
  for (; key + kKeysAtOnce <= end; key += kKeysAtOnce) {
    if (run.ahead) fetch<3>(run.ahead + (key - run.begin) * bytes, kKeysAtOnce * bytes);
    dot_products<D, R, kKeysAtOnce>(q, queries.width, k + key * run.stride, run.stride, scores + key);
  }
  for (; key < end; ++key) {
    dot_products<D, R, 1>(q, queries.width, k + key * run.stride, run.stride, scores + key);
  }
}

// Adds weight * value of `count` keys to R queries, J vectors of each.
template <DType D, int R, int J>
MPT_INLINE void add_values(const float* weights, const Element<D>* v, const char* ahead, int64_t stride, int64_t count,
                           float* values, int64_t width) {
  vf acc[R][J];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < J; ++j) acc[r][j] = load<vf>(values + r * width + j * VL);
  }
  for (int64_t key = 0; key < count; ++key) {
    vf vs[J];
    for (int j = 0; j < J; ++j) vs[j] = load_as_float<D>(v, key * stride + j * VL);
    if (ahead) fetch<3>(ahead + key * stride * sizeof(Element<D>), J * VL * sizeof(Element<D>));
    for (int r = 0; r < R; ++r) {
      const vf w = splat(weights[r * kKeys + key]);
      for (int j = 0; j < J; ++j) acc[r][j] = w * vs[j] + acc[r][j];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < J; ++j) store(values + r * width + j * VL, acc[r][j]);
  }
}

// Adds the values of the keys `seen` of a run, which all R queries see; weights [R, kKeys], values [R, width].
template <DType D, int R>
MPT_INLINE void weigh_keys(const float* weights, const KeyRun& run, KeyRange seen, float* values, int64_t width) {
  const int64_t begin = std::max(seen.begin, run.begin), count = std::min(seen.end, run.end) - begin;
  if (count <= 0) return;
  const int64_t offset = (begin - run.begin) * run.stride;
  const Element<D>* v = static_cast<const Element<D>*>(run.v) + offset;
  const char* ahead = run.ahead ? run.ahead + offset * sizeof(Element<D>) : nullptr;
  int64_t d = 0;
  const auto add = [&](auto vectors) {
    constexpr int J = decltype(vectors)::value;
    for (; d + J * VL <= width; d += J * VL) {
      add_values<D, R, J>(weights + begin, v + d, ahead ? ahead + d * sizeof(Element<D>) : nullptr, run.stride, count,
                          values + d, width);
    }
  };
  add(std::integral_constant<int, 4>());
  add(std::integral_constant<int, 2>());
  add(std::integral_constant<int, 1>());
}

// Adds the values of a run to R queries from i on: together those of the keys that all of them see.
template <DType D, int R>
__attribute__((noinline)) void weigh_run(const Queries& queries, int64_t i, const KeyRun& run, const float* weights) {
  float* values = queries.values + i * queries.width;
  KeyRange all = {0, kKeys};
  for (int r = 0; r < R; ++r) {
    all = {std::max(all.begin, queries.seen[i + r].begin), std::min(all.end, queries.seen[i + r].end)};
  }
  const auto weigh_alone = [&](int r, KeyRange keys) {
    if constexpr (R > 1) {
      weigh_keys<D, 1>(weights + r * kKeys, run, keys, values + r * queries.width, queries.width);
    }
  };
  if (all.empty()) {
    for (int r = 0; r < R; ++r) weigh_alone(r, queries.seen[i + r]);
    return;
  }
  for (int r = 0; r < R; ++r) weigh_alone(r, {queries.seen[i + r].begin, all.begin});
  weigh_keys<D, R>(weights, run, all, values, queries.width);
  for (int r = 0; r < R; ++r) weigh_alone(r, {all.end, queries.seen[i + r].end});
}

// Turns the dot products of query i with the keys it sees of a block into scores; returns the largest, or the query's
// top so far where that is larger.
inline float take_scores(const Queries& queries, int64_t i, const KeyBlock& block, KeyRange seen, const ScoreRule& rule,
                         float* scores) {
  vi lane;
  for (int n = 0; n < VL; ++n) lane[n] = n;
  const float distance = static_cast<float>(queries.position[i] - block.start);  // to the block's first key
  vf tops = splat(kUnseen);
  const auto score = [&](int64_t key) {
    vf s = load<vf>(scores + key) * rule.scale;
    if (block.key_scales) s *= load<vf>(block.key_scales + key);
    if (rule.softcap > 0) s = rule.softcap * tanh(s / rule.softcap);
    return s - queries.slope[i] * (distance - to_float(lane + static_cast<int32_t>(key)));
  };
  const auto take = [&](int64_t key, vf s) {
    store(scores + key, s);
    tops = max(tops, s);
  };
  int64_t key = 0;
  if (seen.begin == 0) {
    for (; key + VL <= seen.end; key += VL) take(key, score(key));
  }
  for (; key < seen.end; key += VL) {
    const vi unseen = (lane < static_cast<int32_t>(seen.begin - key)) | (lane >= static_cast<int32_t>(seen.end - key));
    take(key, select(unseen, splat(kUnseen), score(key)));
  }
  return std::max(queries.top[i], largest(tops));
}

// Turns scores up to `end` into weights relative to `top`; returns sums of them.
inline vf take_weights(const KeyBlock& block, int64_t end, float top, float* scores) {
  vf weights = {};
  for (int64_t key = 0; key < end; key += VL) {
    const vf x = load<vf>(scores + key) - top;
    const vf w = select(x == x, exp(x), x);  // NaN must not vanish in exp
    store(scores + key, block.value_scales ? w * load<vf>(block.value_scales + key) : w);
    weights += w;
  }
  return weights;
}

// Adds `sum` of the weights relative to `top` to those of query i, and rescales its sums so far to the new top.
inline void add_total(const Queries& queries, int64_t i, float top, float sum) {
  if (top == queries.top[i]) {
    queries.total[i] += sum;
    return;
  }
  const float keep = exp(splat(queries.top[i] - top))[0];
  queries.top[i] = top;
  queries.total[i] = queries.total[i] * keep + sum;
  float* values = queries.values + i * queries.width;
  for (int64_t d = 0; d < queries.width; d += VL) store(values + d, load<vf>(values + d) * keep);
}

// Turns the dot products of R queries from i on with the keys they see of a block into their weights. Each step is made
// for all queries before the next one, which waits for its results.
template <int R>
inline void soften(const Queries& queries, int64_t i, const KeyBlock& block, const ScoreRule& rule, float* scores) {
  const KeyRange* seen = queries.seen + i;
  float tops[R], sums[4];
  vf weights[4] = {};
  for (int r = 0; r < R; ++r) tops[r] = take_scores(queries, i + r, block, seen[r], rule, scores + r * kKeys);
  for (int r = 0; r < R; ++r) weights[r] = take_weights(block, seen[r].end, tops[r], scores + r * kKeys);
  sum4(weights[0], weights[1], weights[2], weights[3], sums);
  for (int r = 0; r < R; ++r) {
    if (!seen[r].empty()) add_total(queries, i + r, tops[r], sums[r]);
  }
}

// Attends from all queries of a tile to a block of keys, of which look() has found what each sees; scores is a buffer
// of [kQueries, kKeys].
template <DType D>
void attend_block(const Queries& queries, const KeyBlock& block, const ScoreRule& rule, float* scores) {
  for_queries(queries.count, [&](auto together, int64_t i) {
    constexpr int R = decltype(together)::value;
    bool any = false;
    for (int r = 0; r < R; ++r) any |= !queries.seen[i + r].empty();
    if (!any) return;
    for (int n = 0; n < block.runs; ++n) score_run<D, R>(queries, i, block.run[n], scores);
    soften<R>(queries, i, block, rule, scores);
    for (int n = 0; n < block.runs; ++n) weigh_run<D, R>(queries, i, block.run[n], scores);
  });
}

}  // namespace MPT_ISA
}  // namespace mpt
