// Attention of a ragged step over the paged cache: the step's keys and values go into the cache, then each query
// attends what its row's blocks hold up to its own position.
//
// A unit of work is a tile of one row's queries with the heads that share one head of keys. It walks the row's keys
// block by block (attention_block.h), so that cost grows with the real lengths and memory does not.
#pragma once

#include <vector>

#include "attention_block.h"

namespace mpt {
namespace MPT_ISA {

template <DType D>
class PagedAttention {
  // Queries of a tile, over its heads; more where the heads that share one head of keys are more by themselves.
  static constexpr int64_t kTileQueries = 64 / kQueries * kQueries;
  static constexpr int64_t kTokensPerWrite = 8;
  static constexpr int64_t kAloneProducts = 100'000;  // below so many a second thread costs more than it brings

 public:
  explicit PagedAttention(const AttentionArgs& args)
      : a(args), group(a.H / a.Hkv), width((a.hd + VL - 1) / VL * VL), tiles(tiles_of(a, group)) {}

  void run(Pool& pool) {
    auto write = [&](int64_t chunk) {
      const int64_t end = std::min((chunk + 1) * kTokensPerWrite, a.T);
      for (int64_t t = chunk * kTokensPerWrite; t < end; ++t) write_token(t);
    };
    // All tiles of one head follow each other, long ones first: they read the same keys, and the last ones are short.
    const int64_t units = static_cast<int64_t>(tiles.size()) * a.Hkv;
    auto attend = [&](int64_t unit) { attend_tile(tiles[unit % tiles.size()], unit / tiles.size()); };
    int64_t products = 0;
    for (const Tile& tile : tiles) products += 2 * tile.products * a.H * a.hd;
    const int threads = products < kAloneProducts ? 1 : pool.threads();
    run_phases(pool, threads, phase((a.T + kTokensPerWrite - 1) / kTokensPerWrite, write), phase(units, attend));
  }

 private:
  struct Tile {
    int64_t row, token, tokens;
    int64_t position;  // of its first token
    int64_t products;  // of queries and keys, for one head
  };

  // A thread's memory for one tile.
  struct Room {
    Queries queries;
    float* k;       // [kKeys, width]
    float* v;       // [kKeys, width]
    float* scores;  // [kQueries, kKeys]
  };

  static std::vector<Tile> tiles_of(const AttentionArgs& a, int64_t group) {
    std::vector<Tile> tiles;
    const int64_t most = std::max<int64_t>(1, kTileQueries / group);
    for (int64_t r = 0; r < a.R; ++r) {
      const int64_t start = a.query_start[r], length = a.query_len[r], context = a.context_len[r];
      const bool inside = start >= 0 && start + length <= a.T && length <= context && context <= a.W * a.block;
      if (length < 1 || !inside || a.N < 1) continue;  // padding, or what must not be read
      for (int64_t i = 0; i < length; i += most) {
        const int64_t tokens = std::min(most, length - i), position = context - length + i, keys = position + tokens;
        const int64_t seen = a.window < 0 ? keys : std::min(keys, a.window + tokens);
        tiles.push_back({r, start + i, tokens, position, tokens * seen});
      }
    }
    std::sort(tiles.begin(), tiles.end(), [](const Tile& x, const Tile& y) {
      return x.products != y.products ? x.products > y.products : x.token < y.token;
    });
    return tiles;
  }

  int64_t token_width() const { return (a.H + 2 * a.Hkv) * a.hd; }

  // Token t's keys and values to its slot; its outputs are zeros until a row's tile fills them.
  void write_token(int64_t t) const {
    std::fill(a.out + t * a.H * a.hd, a.out + (t + 1) * a.H * a.hd, 0.f);
    const int64_t slot = a.slots[t];
    if (slot < 0 || slot >= a.N * a.block) return;
    const float* k = a.qkv + t * token_width() + a.H * a.hd;
    const float* v = k + a.Hkv * a.hd;
    for (int64_t h = 0; h < a.Hkv; ++h) {
      const int64_t to = place(slot / a.block, h) + slot % a.block * a.hd;
      write(k + h * a.hd, static_cast<Element<D>*>(a.k_pool) + to);
      write(v + h * a.hd, static_cast<Element<D>*>(a.v_pool) + to);
    }
  }

  void write(const float* x, Element<D>* to) const {
    for_lanes(a.hd, [&](int64_t i, int64_t n) {
      const vf v = load_some<vf>(x + i, n);
      if constexpr (D == DType::kFloat32) {
        store_some(to + i, v, n);
      } else {
        store_some(to + i, to_bf16(v), n);
      }
    });
  }

  // Index in a pool of the first of a block's keys of one head.
  int64_t place(int64_t block, int64_t kv_head) const { return (block * a.Hkv + kv_head) * a.block * a.hd; }

  void attend_tile(const Tile& tile, int64_t kv_head) const {
    const bool widen = a.hd % VL != 0 || tile.tokens * group > kQueries;
    const Room room = make_room(tile.tokens * group);
    take_queries(tile, kv_head, room.queries);
    const ScoreRule rule = {a.scale, a.softcap, a.window};
    const int64_t end = tile.position + tile.tokens;
    int64_t start = a.window < 0 ? 0 : std::max<int64_t>(tile.position - a.window, 0) / kKeys * kKeys;
    KeyBlock blocks[2], *block = blocks, *next = blocks + 1;
    locate(tile.row, kv_head, start, end, block);
    for (int n = 0; n < block->runs; ++n) {
      const KeyRun& run = block->run[n];
      Source<D, true>::prefetch(run.k, 0, (run.end - run.begin) * a.hd);
    }
    for (; start < end; start += kKeys, std::swap(block, next)) {
      locate(tile.row, kv_head, start + kKeys, end, next);
      look_ahead(block, *next);
      if (widen) {
        widen_keys(block, room);
        attend_block<Source<DType::kFloat32, false>>(room.queries, *block, rule, room.scores);
      } else {
        attend_block<Source<D, true>>(room.queries, *block, rule, room.scores);
      }
    }
    give_outputs(tile, kv_head, room.queries);
  }

  // The keys of a row from position `start` on, as they lie in the pools; none from `end` on.
  void locate(int64_t row, int64_t kv_head, int64_t start, int64_t end, KeyBlock* block) const {
    block->start = start, block->runs = 0;
    end = std::min(end, start + kKeys);
    for (int64_t position = start; position < end;) {
      const int64_t offset = position % a.block, stop = std::min(end, position - offset + a.block);
      // A table may hold anything; the pool is all that is read.
      const int64_t id = std::clamp<int64_t>(a.block_tables[row * a.W + position / a.block], 0, a.N - 1);
      const int64_t at = place(id, kv_head) + offset * a.hd;
      const Element<D>* k = static_cast<const Element<D>*>(a.k_pool) + at;
      const Element<D>* v = static_cast<const Element<D>*>(a.v_pool) + at;
      block->run[block->runs++] = {k, v, k, position - start, stop - start, a.hd};
      position = stop;
    }
  }

  static void look_ahead(KeyBlock* block, const KeyBlock& next) {
    for (int n = 0; n < std::min(block->runs, next.runs); ++n) block->run[n].ahead = next.run[n].k;
  }

  // Copies keys and values to the room as float32, rows padded with zeros to whole vectors.
  void widen_keys(KeyBlock* block, const Room& room) const {
    for (int n = 0; n < block->runs; ++n) {
      const KeyRun& run = block->run[n];
      widen(run.k, run.v, run.end - run.begin, room.k + run.begin * width);
      widen(run.v, run.ahead, run.end - run.begin, room.v + run.begin * width);
    }
    block->run[0] = {room.k, room.v, room.k, 0, block->run[block->runs - 1].end, width};
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

  Room make_room(int64_t count) const {
    thread_local Scratch scratch;
    const int64_t per_query = 2 * width + 4, padded = (count + 15) / 16 * 16;  // each part begins at 64 bytes
    float* next = scratch.get<float>(padded * per_query + 2 * kKeys * width + kQueries * kKeys);
    const auto take = [&](int64_t size) { return next += size, next - size; };
    Room room;
    room.k = take(kKeys * width), room.v = take(kKeys * width), room.scores = take(kQueries * kKeys);
    Queries& q = room.queries;
    q.count = count, q.width = width;
    q.q = take(padded * width), q.values = take(padded * width);
    q.top = take(padded), q.total = take(padded), q.slope = take(padded);
    q.position = reinterpret_cast<int32_t*>(take(padded));
    return room;
  }

  // The tile's queries token by token, of each its heads.
  void take_queries(const Tile& tile, int64_t kv_head, const Queries& queries) const {
    std::fill(queries.values, queries.values + queries.count * width, 0.f);
    std::fill(queries.top, queries.top + queries.count, kUnseen);
    std::fill(queries.total, queries.total + queries.count, 0.f);
    for (int64_t i = 0; i < queries.count; ++i) {
      const int64_t token = i / group, head = kv_head * group + i % group;
      const float* q = a.qkv + (tile.token + token) * token_width() + head * a.hd;
      for_lanes(a.hd, [&](int64_t d, int64_t n) { store(queries.q + i * width + d, load_some<vf>(q + d, n)); });
      queries.slope[i] = a.slopes ? a.slopes[head] : 0.f;
      queries.position[i] = static_cast<int32_t>(tile.position + token);
    }
  }

  void give_outputs(const Tile& tile, int64_t kv_head, const Queries& queries) const {
    for (int64_t i = 0; i < queries.count; ++i) {
      float* out = a.out + ((tile.token + i / group) * a.H + kv_head * group + i % group) * a.hd;
      const float* values = queries.values + i * width;
      for_lanes(a.hd, [&](int64_t d, int64_t n) { store_some(out + d, load<vf>(values + d) / queries.total[i], n); });
    }
  }

  const AttentionArgs& a;
  const int64_t group;  // query heads of one head of keys
  const int64_t width;  // features of a head in whole vectors
  const std::vector<Tile> tiles;
};

inline void paged_attention(const AttentionArgs& a, Pool& pool) {
  if (a.cache_dtype == DType::kFloat32) {
    PagedAttention<DType::kFloat32>(a).run(pool);
  } else {
    PagedAttention<DType::kBfloat16>(a).run(pool);
  }
}

}  // namespace MPT_ISA
}  // namespace mpt
