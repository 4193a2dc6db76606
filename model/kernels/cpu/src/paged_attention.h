// Attention of a ragged step over the paged cache: the step's keys and values go into the cache, then each query
// attends to the keys of its row up to its own position.
//
// A unit of work is a tile of one row's queries with some heads of keys (attention_schedule.h). It walks the row's keys
// block by block (attention_block.h), the newest first, so that the cost grows with the real lengths and memory does
// not; blocks that no query of the tile needs are not read (horizon.h).
#pragma once

#include "attention_block.h"
#include "attention_schedule.h"
#include "cache_write.h"
#include "horizon.h"
#include "work.h"

namespace mpt {
namespace MPT_ISA {

template <DType D>
class PagedAttention : public Work {
  static constexpr int64_t kTokensPerWrite = 8;
  static constexpr int64_t kAhead = 8192;             // bytes of the cache to fetch ahead of their use,
  static constexpr int64_t kMostAhead = 16;           // at most as many pieces
  static constexpr int64_t kAloneProducts = 100'000;  // with fewer, a second thread costs more than it saves

 public:
  static void run(const AttentionArgs& args, Pool& pool) {
    const AttentionSchedule schedule(args, pool.threads());
    PagedAttention attention(args, schedule);
    Phases phases;
    attention.add_to(phases);
    run_phases(pool, schedule.products < kAloneProducts ? 1 : pool.threads(), phases.data(), phases.size());
  }

  PagedAttention(const AttentionArgs& args, const AttentionSchedule& schedule)
      : a(args),
        schedule(schedule),
        writer(a),
        group(a.H / a.Hkv),
        width((a.hd + VL - 1) / VL * VL),
        alone(schedule.tiles.size() == 1 && schedule.tiles[0].tokens == args.T),
        rule{a.scale, a.softcap, a.window} {}

  void add_to(Phases& phases) override {
    const auto write = [](void* self, int64_t chunk) { static_cast<PagedAttention*>(self)->write_tokens(chunk); };
    const auto attend = [](void* self, int64_t i) {
      PagedAttention* attention = static_cast<PagedAttention*>(self);
      attention->attend_unit(attention->schedule.units[i]);
    };
    if (a.counts) a.counts->met.fetch_add(schedule.keys * a.Hkv, std::memory_order_relaxed);
    if (!alone) phases.push_back({(a.T + kTokensPerWrite - 1) / kTokensPerWrite, write, this});
    phases.push_back({static_cast<int64_t>(schedule.units.size()), attend, this});
  }

 private:
  using Tile = AttentionSchedule::Tile;
  using Unit = AttentionSchedule::Unit;

  // A tile's queries of one head of keys, on their way through the row's keys.
  struct Head {
    int64_t kv_head;
    Queries queries;
    float longest = 0;  // a bound of the lengths of the keys from the current block on
    bool reads = true;  // whether some query reads the current block
    float* scores;      // of few queries [count, kKeys], else [kQueries, kKeys]
    float* scales;      // [2, kKeys] of keys and of values
  };

  void write_tokens(int64_t chunk) const {
    const int64_t end = std::min((chunk + 1) * kTokensPerWrite, a.T);
    for (int64_t t = chunk * kTokensPerWrite; t < end; ++t) {
      std::fill(a.out + t * a.H * a.hd, a.out + (t + 1) * a.H * a.hd, 0.f);  // until a row's tile fills them
      writer.write(t, 0, a.Hkv);
    }
  }

  void attend_unit(const Unit& unit) const {
    if (alone) {
      for (int64_t t = 0; t < a.T; ++t) writer.write(t, unit.head, unit.head + unit.heads);
    }
    const Tile& tile = *unit.tile;
    const bool few = AttentionSchedule::few_queries(a, tile);
    thread_local Scratch scratch, widened;
    thread_local std::vector<Head> heads;
    make_heads(unit, few ? tile.tokens * group : kQueries, scratch, heads);
    const int64_t end = tile.position + tile.tokens, first = AttentionSchedule::first_key(a, tile);
    int64_t left_out = 0;
    for (int64_t start = (end - 1) / kKeys * kKeys; start >= first; start -= kKeys) {
      bool any = false;
      for (Head& head : heads) {
        find_readers(tile.row, start, start > first, head);
        if (!head.reads) left_out += kKeys;
        any |= head.reads;
      }
      if (!any) continue;
      KeyBlock block = locate(tile.row, unit.head, start, end), next;
      next.runs = 0;
      if (start > first) next = locate(tile.row, unit.head, start - kKeys, end);
      if (few) {
        attend_heads(tile.row, block, next, heads);
      } else {
        attend_widened(tile.row, block, next, heads[0], widened);
      }
    }
    for (const Head& head : heads) give_outputs(tile, head.kv_head, head.queries);
    if (a.counts && left_out) a.counts->left_out.fetch_add(left_out, std::memory_order_relaxed);
  }

  // Finds out which of a head's queries read the block from `start` on, and the keys of it that they see.
  void find_readers(int64_t row, int64_t start, bool more, Head& head) const {
    head.reads = true;
    if (schedule.alibi_horizon) {
      const float own = head.longest;
      if (more) head.longest = longest_key(row, head.kv_head, start - kKeys);
      head.reads = mark_readers(head.queries, start, own, rule);
    }
    if (head.reads) look(head.queries, start, rule);
  }

  // Few queries of several heads, first with all keys of a block and then with its values: run by run, and head by head
  // within a run, as they lie in the pools. `next` is the block that comes then, or has no runs.
  void attend_heads(int64_t row, KeyBlock& block, const KeyBlock& next, std::vector<Head>& heads) const {
    thread_local std::vector<const char*> pieces;
    order_pieces(block, next, heads, pieces);
    const int64_t early = std::clamp<int64_t>(kAhead / bytes_of_piece(), 1, kMostAhead);
    const char* const* piece = pieces.data();
    const auto for_pieces = [&](auto f) {
      for (int n = 0; n < block.runs; ++n) {
        KeyRun run = block.run[n];
        for (const Head& head : heads) {
          if (!head.reads) continue;
          run.k = run.v = *piece, run.ahead = piece[early], ++piece;
          for_queries(head.queries.count, [&](auto together, int64_t i) {
            f(together, i, run, head);
            run.ahead = nullptr;  // the first queries have had it fetched
          });
        }
      }
    };
    for_pieces([&](auto together, int64_t i, const KeyRun& run, const Head& head) {
      score_run<D, decltype(together)::value>(head.queries, i, run, head.scores + i * kKeys);
    });
    for (const Head& head : heads) {
      if (!head.reads) continue;
      take_scales(row, head.kv_head, head.scales, block);
      for_queries(head.queries.count, [&](auto together, int64_t i) {
        soften<decltype(together)::value>(head.queries, i, block, rule, head.scores + i * kKeys);
      });
    }
    for_pieces([&](auto together, int64_t i, const KeyRun& run, const Head& head) {
      weigh_run<D, decltype(together)::value>(head.queries, i, run, head.scores + i * kKeys);
    });
  }

  // Bytes of a head's keys in a block of the cache: that far apart are heads that follow each other.
  int64_t bytes_of_piece() const { return a.block * a.hd * sizeof(Element<D>); }

  // The heads' keys of the block, run by run, then their values, then keys of the next block, in the order of their
  // use; null behind them.
  void order_pieces(const KeyBlock& block, const KeyBlock& next, const std::vector<Head>& heads,
                    std::vector<const char*>& pieces) const {
    pieces.clear();
    const auto add = [&](const KeyBlock& from, const void* KeyRun::* numbers) {
      for (int n = 0; n < from.runs; ++n) {
        const char* first = static_cast<const char*>(from.run[n].*numbers);
        for (const Head& head : heads) {
          if (head.reads) pieces.push_back(first + (head.kv_head - heads[0].kv_head) * bytes_of_piece());
        }
      }
    };
    add(block, &KeyRun::k), add(block, &KeyRun::v), add(next, &KeyRun::k);
    pieces.resize(pieces.size() + kMostAhead, nullptr);
  }

  // Many queries of one head: keys and values become float32 first, rows padded with zeros to whole vectors.
  void attend_widened(int64_t row, KeyBlock& block, const KeyBlock& next, const Head& head, Scratch& memory) const {
    float *k = memory.get<float>(2 * kKeys * width), *v = k + kKeys * width;
    for (int n = 0; n < block.runs; ++n) {
      const KeyRun& run = block.run[n];
      const KeyRun* later = n < next.runs ? &next.run[n] : nullptr;
      widen(run.k, later ? later->k : nullptr, run.end - run.begin, k + run.begin * width);
      widen(run.v, later ? later->v : nullptr, run.end - run.begin, v + run.begin * width);
    }
    block.run[0] = {k, v, 0, block.run[block.runs - 1].end, width, nullptr};
    block.runs = 1;
    take_scales(row, head.kv_head, head.scales, block);
    attend_block<DType::kFloat32>(head.queries, block, rule, head.scores);
  }

  // from [rows, hd] -> to [rows, width]; meanwhile the same of `later`, if there is any, goes to the second-level
  // cache.
  void widen(const void* from, const void* later, int64_t rows, float* to) const {
    const int64_t bytes = a.hd * sizeof(Element<D>);
    for (int64_t row = 0; row < rows; ++row) {
      if (later) fetch<2>(static_cast<const char*>(later) + row * bytes, bytes);
      for_lanes(a.hd, [&](int64_t d, int64_t count) {
        store(to + row * width + d, load_some_as_float<D>(from, row * a.hd + d, count));
      });
    }
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
  KeyBlock locate(int64_t row, int64_t kv_head, int64_t start, int64_t end) const {
    KeyBlock block;
    block.start = start, block.runs = 0;
    block.key_scales = block.value_scales = nullptr;
    for_runs(row, kv_head, start, std::min(end, start + kKeys), [&](int64_t at, int64_t position, int64_t stop) {
      const Element<D>* k = static_cast<const Element<D>*>(a.k_pool) + at * a.hd;
      const Element<D>* v = static_cast<const Element<D>*>(a.v_pool) + at * a.hd;
      block.run[block.runs++] = {k, v, position - start, stop - start, a.hd, nullptr};
    });
    return block;
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
  void take_scales(int64_t row, int64_t kv_head, float* scales, KeyBlock& block) const {
    if constexpr (D == DType::kInt8) {
      const int64_t start = block.start, end = start + block.run[block.runs - 1].end;
      for_runs(row, kv_head, start, end, [&](int64_t at, int64_t position, int64_t stop) {
        std::copy_n(a.key_scales + at, stop - position, scales + position - start);
        std::copy_n(a.value_scales + at, stop - position, scales + kKeys + position - start);
      });
      block.key_scales = scales, block.value_scales = scales + kKeys;
    }
  }

  // A unit's heads in a thread's memory, with the queries of its tile and no keys seen yet.
  void make_heads(const Unit& unit, int64_t scored, Scratch& scratch, std::vector<Head>& heads) const {
    const int64_t count = unit.tile->tokens * group, padded = (count + 3) / 4 * 4;
    const int64_t each = 2 * count * width + 8 * padded + 4 * padded + (scored + 2) * kKeys;
    float* next = scratch.get<float>(unit.heads * each);
    const auto take = [&](int64_t size) { return next += size, next - size; };
    const auto take_whole = [&] { return reinterpret_cast<int32_t*>(take(padded)); };
    heads.resize(unit.heads);
    for (int64_t h = 0; h < unit.heads; ++h) {
      Head& head = heads[h];
      head.kv_head = unit.head + h, head.longest = 0;
      head.scores = take(scored * kKeys), head.scales = take(2 * kKeys);
      Queries& q = head.queries;
      q.count = count, q.width = width;
      q.q = take(count * width), q.values = take(count * width);
      q.seen = reinterpret_cast<KeyRange*>(take(4 * padded));
      q.top = take(padded), q.total = take(padded), q.slope = take(padded), q.reach = take(padded);
      q.allowance = take(padded);
      q.position = take_whole(), q.skipped = take_whole(), q.reads = take_whole();
      take_queries(*unit.tile, head.kv_head, q);
    }
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
      const float* q = a.qkv + ((tile.token + token) * (a.H + 2 * a.Hkv) + head) * a.hd;
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
  const CacheWriter<D> writer;
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
