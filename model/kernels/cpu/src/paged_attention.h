// Attention of a ragged step over the paged cache: the step's keys and values go into the cache, then each query
// attends to the keys of its row up to its own position.
//
// A unit of work is a tile of one row's queries with the heads that share one head of keys. It walks the row's keys
// block by block (attention_block.h), the newest first, so that the cost grows with the real lengths and memory does
// not; blocks that no query of the tile needs are not read (horizon.h).
#pragma once

#include "attention_block.h"
#include "attention_schedule.h"
#include "horizon.h"
#include "work.h"

namespace mpt {
namespace MPT_ISA {

template <DType D>
class PagedAttention : public Work {
  static constexpr int64_t kTokensPerWrite = 8;
  static constexpr int64_t kAloneProducts = 100'000;  // with fewer, a second thread costs more than it saves

 public:
  static void run(const AttentionArgs& args, Pool& pool) {
    const AttentionSchedule schedule(args);
    PagedAttention attention(args, schedule);
    Phases phases;
    attention.add_to(phases);
    run_phases(pool, schedule.products < kAloneProducts ? 1 : pool.threads(), phases.data(), phases.size());
  }

  PagedAttention(const AttentionArgs& args, const AttentionSchedule& schedule)
      : a(args),
        schedule(schedule),
        group(a.H / a.Hkv),
        width((a.hd + VL - 1) / VL * VL),
        alone(schedule.tiles.size() == 1 && schedule.tiles[0].tokens == args.T),
        rule{a.scale, a.softcap, a.window} {}

  void add_to(Phases& phases) override {
    const auto write = [](void* self, int64_t chunk) { static_cast<PagedAttention*>(self)->write_tokens(chunk); };
    const auto attend = [](void* self, int64_t chunk) { static_cast<PagedAttention*>(self)->attend_units(chunk); };
    if (a.counts) a.counts->met.fetch_add(schedule.keys * a.Hkv, std::memory_order_relaxed);
    if (!alone) phases.push_back({(a.T + kTokensPerWrite - 1) / kTokensPerWrite, write, this});
    phases.push_back({(units() + units_together() - 1) / units_together(), attend, this, nullptr, in_parts()});
  }

 private:
  using Tile = AttentionSchedule::Tile;

  // A thread's memory for one tile.
  struct Buffers {
    Queries queries;
    float* k;       // [kKeys, width]
    float* v;       // [kKeys, width]
    float* scores;  // [kQueries, kKeys]
    float* scales;  // [2, kKeys] of keys and of values
  };

  void write_tokens(int64_t chunk) const {
    const int64_t end = std::min((chunk + 1) * kTokensPerWrite, a.T);
    for (int64_t t = chunk * kTokensPerWrite; t < end; ++t) write_token(t);
  }

  // A tile of queries with a head of keys. All tiles of one head follow each other, long ones first: they read the same
  // keys, and the last ones are short.
  struct Unit {
    const Tile* tile;
    int64_t kv_head;
  };

  int64_t units() const { return static_cast<int64_t>(schedule.tiles.size()) * a.Hkv; }
  Unit unit(int64_t i) const {
    const int64_t count = static_cast<int64_t>(schedule.tiles.size());
    return {&schedule.tiles[i % count], schedule.head(i / count)};
  }

  // Units that a thread claims at a time: where there are many, several, since it fetches the first keys of one while
  // it computes the one before.
  int64_t units_together() const { return std::clamp<int64_t>(units() / 64, 1, 4); }

  // Whether each thread begins with units that follow each other: the next one is known then, and its keys are fetched.
  // Few units that take different times are taken in their order, in which the last ones are short.
  bool in_parts() const { return schedule.short_tiles && (!schedule.alibi_horizon || units() >= 64); }

  void attend_units(int64_t chunk) const {
    const int64_t begin = chunk * units_together(), end = std::min(begin + units_together(), units());
    // With parts, a thread's next chunk follows too.
    const int64_t known = in_parts() ? units() : end;
    for (int64_t i = begin; i < end; ++i) attend_unit(unit(i), i + 1 < known ? unit(i + 1) : Unit{nullptr, 0});
  }

  int64_t token_width() const { return (a.H + 2 * a.Hkv) * a.hd; }

  // Token t's keys and values to its slot; its outputs are zeros until a row's tile fills them.
  void write_token(int64_t t) const {
    std::fill(a.out + t * a.H * a.hd, a.out + (t + 1) * a.H * a.hd, 0.f);
    write_heads(t, 0, a.Hkv);
  }

  void write_heads(int64_t t, int64_t first, int64_t last) const {
    const int64_t slot = a.slots[t];
    if (slot < 0 || slot >= a.N * a.block) return;
    const float* k = a.qkv + t * token_width() + a.H * a.hd;
    const float* v = k + a.Hkv * a.hd;
    for (int64_t h = first; h < last; ++h) {
      const int64_t to = (slot / a.block * a.Hkv + h) * a.block + slot % a.block;
      const vf squares = write(k + h * a.hd, a.k_pool, a.key_scales, to);
      if (a.key_norms) {
        const float scale = D == DType::kInt8 ? a.key_scales[to] : 1;
        a.key_norms[to] = length_bound(sum(squares) * scale * scale);
      }
      write(v + h * a.hd, a.v_pool, a.value_scales, to);
    }
  }

  // Stores x [hd] at `to` of a pool; returns sums of the squares of the stored numbers, of int8 ones without the scale.
  MPT_INLINE vf write(const float* x, void* pool, float* scales, int64_t to) const {
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

  void attend_unit(const Unit& unit, const Unit& following) const {
    const Tile& tile = *unit.tile;
    const int64_t kv_head = unit.kv_head;
    if (alone) {
      for (int64_t t = 0; t < a.T; ++t) write_heads(t, kv_head, kv_head + 1);
    }
    const bool widen = a.hd % VL != 0 || tile.tokens * group > kQueries;
    const Buffers buffers = make_buffers(tile.tokens * group);
    take_queries(tile, kv_head, buffers.queries);
    const int64_t end = tile.position + tile.tokens, first = AttentionSchedule::first_key(a, tile);
    int64_t start = (end - 1) / kKeys * kKeys, left_out = 0;
    // The first keys and values of the unit that the last one looked ahead to.
    thread_local const void *fetched_keys = nullptr, *fetched_values = nullptr;
    const bool one_block = start - kKeys < first;
    KeyBlock blocks[2], *block = blocks, *next = blocks + 1;
    next->start = -1;
    float longest = 0;
    for (; start >= first; start -= kKeys) {
      const float own = longest;  // of the keys from `start` on
      if (schedule.alibi_horizon && start > first) longest = longest_key(tile.row, kv_head, start - kKeys);
      if (schedule.alibi_horizon && !mark_readers(buffers.queries, start, own, rule)) {
        left_out += kKeys;
        continue;
      }
      std::swap(block, next);
      if (block->start != start) {
        locate(tile.row, kv_head, start, end, block);
        if (block->run[0].k != fetched_keys) fetch_keys(*block);
        if (one_block && block->run[0].v != fetched_values) fetch_values(*block);
      }
      if (start > first && (!schedule.alibi_horizon || may_need(buffers.queries, start - kKeys, longest, rule))) {
        locate(tile.row, kv_head, start - kKeys, end, next);
        look_ahead(block, *next, false);
      } else if (start <= first && following.tile) {
        const int64_t keys = following.tile->position + following.tile->tokens;
        locate(following.tile->row, following.kv_head, (keys - 1) / kKeys * kKeys, keys, next);
        look_ahead(block, *next, one_block);
        fetched_keys = next->run[0].k;
        if (one_block) fetched_values = next->run[0].v;
      }
      take_scales(tile.row, kv_head, block, buffers.scales);
      if (widen) {
        widen_keys(block, buffers);
        attend_block<Source<DType::kFloat32, false>>(buffers.queries, *block, rule, buffers.scores);
      } else {
        attend_block<Source<D, true>>(buffers.queries, *block, rule, buffers.scores);
      }
    }
    give_outputs(tile, kv_head, buffers.queries);
    if (a.counts && left_out) a.counts->left_out.fetch_add(left_out, std::memory_order_relaxed);
  }

  // Calls f(offset in the pools, first position, end) for each contiguous run of a row's keys.
  template <class F>
  void for_runs(int64_t row, int64_t kv_head, int64_t begin, int64_t end, F f) const {
    for (int64_t position = begin; position < end;) {
      const int64_t offset = position % a.block, stop = std::min(end, position - offset + a.block);
      // A table may hold any number; only the pool is read.
      const int64_t id = std::clamp<int64_t>(a.block_tables[row * a.W + position / a.block], 0, a.N - 1);
      f((id * a.Hkv + kv_head) * a.block + offset, position, stop);
      position = stop;
    }
  }

  // The keys of a row from position `start` on, as they lie in the pools; none from `end` on.
  void locate(int64_t row, int64_t kv_head, int64_t start, int64_t end, KeyBlock* block) const {
    block->start = start, block->runs = 0;
    block->key_scales = block->value_scales = nullptr;
    for_runs(row, kv_head, start, std::min(end, start + kKeys), [&](int64_t at, int64_t position, int64_t stop) {
      const Element<D>* k = static_cast<const Element<D>*>(a.k_pool) + at * a.hd;
      const Element<D>* v = static_cast<const Element<D>*>(a.v_pool) + at * a.hd;
      block->run[block->runs++] = {k, v, v, k, position - start, stop - start, a.hd};
    });
  }

  // A bound of the lengths of kKeys keys from position `start` on.
  float longest_key(int64_t row, int64_t kv_head, int64_t start) const {
    vf longest = {};
    for_runs(row, kv_head, start, start + kKeys, [&](int64_t at, int64_t position, int64_t stop) {
      for_lanes(stop - position,
                [&](int64_t i, int64_t n) { longest = max(longest, load_some<vf>(a.key_norms + at + i, n)); });
    });
    return largest(longest);
  }

  // Gathers the scales of a block's keys and values.
  void take_scales(int64_t row, int64_t kv_head, KeyBlock* block, float* scales) const {
    if constexpr (D == DType::kInt8) {
      const int64_t start = block->start, end = start + block->run[block->runs - 1].end;
      for_runs(row, kv_head, start, end, [&](int64_t at, int64_t position, int64_t stop) {
        std::copy_n(a.key_scales + at, stop - position, scales + position - start);
        std::copy_n(a.value_scales + at, stop - position, scales + kKeys + position - start);
      });
      block->key_scales = scales, block->value_scales = scales + kKeys;
    }
  }

  static void fetch_keys(const KeyBlock& block) {
    for (int n = 0; n < block.runs; ++n) {
      const KeyRun& run = block.run[n];
      Source<D, true>::prefetch(run.k, 0, (run.end - run.begin) * run.stride);
    }
  }

  static void fetch_values(const KeyBlock& block) {
    for (int n = 0; n < block.runs; ++n) {
      const KeyRun& run = block.run[n];
      Source<D, true>::prefetch(run.v, 0, (run.end - run.begin) * run.stride);
    }
  }

  // Has the keys of `next` fetched along with the values of `block`, key by key, and those beyond its own keys now.
  // With `values`, its keys along with the keys of `block` and its values along with the values: units of one block are
  // so short that memory would not answer in time.
  static void look_ahead(KeyBlock* block, const KeyBlock& next, bool values) {
    for (int n = 0; n < next.runs; ++n) {
      const KeyRun& run = next.run[n];
      const int64_t keys = run.end - run.begin;
      int64_t along = 0;
      if (n < block->runs) {
        KeyRun& own = block->run[n];
        own.along_v = values ? run.v : run.k;
        if (values) own.along_k = run.k;
        along = std::min(keys, own.end - own.begin);
      }
      Source<D, true>::prefetch(run.k, along * run.stride, (keys - along) * run.stride);
      if (values) Source<D, true>::prefetch(run.v, along * run.stride, (keys - along) * run.stride);
    }
  }

  // Copies keys and values to the buffers as float32, rows padded with zeros to whole vectors.
  void widen_keys(KeyBlock* block, const Buffers& buffers) const {
    for (int n = 0; n < block->runs; ++n) {
      const KeyRun& run = block->run[n];
      widen(run.k, run.along_k, run.end - run.begin, buffers.k + run.begin * width);
      widen(run.v, run.along_v, run.end - run.begin, buffers.v + run.begin * width);
    }
    block->run[0] = {buffers.k, buffers.v, buffers.k, buffers.v, 0, block->run[block->runs - 1].end, width};
    block->runs = 1;
  }

  // from [rows, hd] -> to [rows, width]
  void widen(const void* from, const void* ahead, int64_t rows, float* to) const {
    for (int64_t row = 0; row < rows; ++row) {
      Source<D, true>::prefetch(ahead, row * a.hd, a.hd);
      for_lanes(a.hd, [&](int64_t d, int64_t count) {
        store(to + row * width + d, load_some_as_float<D>(from, row * a.hd + d, count));
      });
    }
  }

  Buffers make_buffers(int64_t count) const {
    thread_local Scratch scratch;
    const int64_t per_query = 2 * width + 8, padded = (count + 15) / 16 * 16;  // each part begins at 64 bytes
    float* next = scratch.get<float>(padded * per_query + 2 * kKeys * width + kQueries * kKeys + 2 * kKeys);
    const auto take = [&](int64_t size) { return next += size, next - size; };
    Buffers buffers;
    buffers.k = take(kKeys * width), buffers.v = take(kKeys * width), buffers.scores = take(kQueries * kKeys);
    buffers.scales = take(2 * kKeys);
    Queries& q = buffers.queries;
    q.count = count, q.width = width;
    q.q = take(padded * width), q.values = take(padded * width);
    q.top = take(padded), q.total = take(padded), q.slope = take(padded);
    q.reach = take(padded), q.allowance = take(padded);
    for (int32_t** whole : {&q.position, &q.skipped, &q.reads}) *whole = reinterpret_cast<int32_t*>(take(padded));
    return buffers;
  }

  // Loads the tile's queries, token by token and head by head.
  void take_queries(const Tile& tile, int64_t kv_head, const Queries& queries) const {
    std::fill(queries.values, queries.values + queries.count * width, 0.f);
    std::fill(queries.top, queries.top + queries.count, kUnseen);
    std::fill(queries.total, queries.total + queries.count, 0.f);
    std::fill(queries.skipped, queries.skipped + queries.count, 0);
    std::fill(queries.reads, queries.reads + queries.count, 1);
    for (int64_t i = 0; i < queries.count; ++i) {
      const int64_t token = i / group, head = kv_head * group + i % group;
      const float* q = a.qkv + (tile.token + token) * token_width() + head * a.hd;
      vf squares = {};
      for_lanes(a.hd, [&](int64_t d, int64_t n) {
        const vf x = load_some<vf>(q + d, n);
        store(queries.q + i * width + d, x);
        squares += x * x;
      });
      queries.slope[i] = a.slopes ? a.slopes[head] : 0.f;
      queries.position[i] = static_cast<int32_t>(tile.position + token);
      if (!schedule.alibi_horizon) continue;
      queries.reach[i] = length_bound(sum(squares)) * std::abs(a.scale);
      queries.allowance[i] = schedule.allowances[head];
    }
  }

  void give_outputs(const Tile& tile, int64_t kv_head, const Queries& queries) const {
    for (int64_t i = 0; i < queries.count; ++i) {
      float* out = a.out + ((tile.token + i / group) * a.H + kv_head * group + i % group) * a.hd;
      const float* values = queries.values + i * width;
      for_lanes(a.hd, [&](int64_t d, int64_t n) { store_some(out + d, load<vf>(values + d) / queries.total[i], n); });
    }
  }

  const AttentionArgs a;
  const AttentionSchedule& schedule;
  const int64_t group;  // query heads of one head of keys
  const int64_t width;  // features of a head in whole vectors
  const bool alone;     // whether all tokens are of one tile: then no other unit reads the keys that a unit writes
  const ScoreRule rule;
};

inline void paged_attention(const AttentionArgs& a, Pool& pool) {
  switch (a.cache_dtype) {
    case DType::kFloat32: return PagedAttention<DType::kFloat32>::run(a, pool);
    case DType::kBfloat16: return PagedAttention<DType::kBfloat16>::run(a, pool);
    case DType::kInt8: return PagedAttention<DType::kInt8>::run(a, pool);
  }
}

}  // namespace MPT_ISA
}  // namespace mpt
