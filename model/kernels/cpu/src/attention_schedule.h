// What the attention of a step consists of, which is the same for all layers: tiles of queries, with the heads of keys
// that they attend to.
#pragma once

#include <algorithm>
#include <vector>

#include "horizon.h"

namespace mpt {
namespace MPT_ISA {

struct AttentionSchedule {
  struct Tile {
    int64_t row, token, tokens;
    int64_t position;  // of its first token
    int64_t products;  // of queries and keys, for one head
  };

  // A tile with some heads of keys, which follow each other.
  struct Unit {
    const Tile* tile;
    int64_t head, heads;
  };

  AttentionSchedule(const AttentionArgs& a, int threads)
      : tiles(tiles_of(a)),
        alibi_horizon(a.alibi_horizon && a.key_norms && a.slopes && longest(tiles) > kKeys),
        allowances(alibi_horizon ? allowances_of(a) : std::vector<float>()) {
    for (const Tile& tile : tiles) {
      products += 2 * tile.products * a.H * a.hd;
      keys += tile.position + tile.tokens - first_key(a, tile);
      few += few_queries(a, tile);
    }
    add_units(a, threads);
  }

  // Whether a tile's keys are read where they lie; those of more queries are widened first.
  static bool few_queries(const AttentionArgs& a, const Tile& tile) {
    return a.hd % VL == 0 && tile.tokens * (a.H / a.Hkv) <= kFewQueries;
  }

  // Position of the first key that a tile may see, or of one before it.
  static int64_t first_key(const AttentionArgs& a, const Tile& tile) {
    return a.window < 0 ? 0 : std::max<int64_t>(tile.position - a.window, 0) / kKeys * kKeys;
  }

  const std::vector<Tile> tiles;
  const bool alibi_horizon;             // whether a query may have keys to skip
  const std::vector<float> allowances;  // [H] of the ALiBi horizon
  std::vector<Unit> units;              // in the order of work
  int64_t few = 0;                      // tiles of few queries
  int64_t products = 0, keys = 0;       // of queries and keys, in all heads; of the tiles, for one head of keys

 private:
  static constexpr int64_t kFewQueries = 8;
  // Queries of a tile, over its heads; more where more heads than that share one head of keys.
  static constexpr int64_t kTileQueries = 128 / kQueries * kQueries;

  static std::vector<float> allowances_of(const AttentionArgs& a) {
    std::vector<float> allowances(a.H);
    std::transform(a.slopes, a.slopes + a.H, allowances.begin(), horizon_allowance);
    return allowances;
  }

  // Tiles of many queries first, since they take longest; all those of a head follow each other, and read the same
  // keys. Then those of few queries, which read a key once, with as many heads at a time as leave work for all threads:
  // the heads of a block lie next to each other, and memory is read fastest in its own order.
  void add_units(const AttentionArgs& a, int threads) {
    const int64_t least = threads * (alibi_horizon ? 4 : 1);  // heads with horizons take different times
    units.reserve((tiles.size() - few) * a.Hkv + few + least);
    for (const Unit& heads : groups_of(a, a.Hkv)) {
      for (const Tile& tile : tiles) {
        if (!few_queries(a, tile)) units.push_back({&tile, heads.head, heads.heads});
      }
    }
    if (!few) return;
    const std::vector<Unit> groups = groups_of(a, std::min(a.Hkv, (least + few - 1) / few));
    for (const Tile& tile : tiles) {
      if (!few_queries(a, tile)) continue;
      for (const Unit& heads : groups) units.push_back({&tile, heads.head, heads.heads});
    }
  }

  // All heads of keys in `count` groups; where there are horizons, that with the farthest one first: it takes longest,
  // and the last units should be short.
  std::vector<Unit> groups_of(const AttentionArgs& a, int64_t count) const {
    std::vector<Unit> groups;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t head = a.Hkv * i / count;
      groups.push_back({nullptr, head, a.Hkv * (i + 1) / count - head});
    }
    if (!alibi_horizon) return groups;
    const int64_t group = a.H / a.Hkv;
    const auto flattest = [&](const Unit& heads) {
      const float* slopes = a.slopes + heads.head * group;
      return *std::min_element(slopes, slopes + heads.heads * group);
    };
    // Not std::stable_sort: parts of it are functions that all instruction sets would share.
    std::sort(groups.begin(), groups.end(), [&](const Unit& x, const Unit& y) {
      const float of_x = flattest(x), of_y = flattest(y);
      return of_x != of_y ? of_x < of_y : x.head < y.head;
    });
    return groups;
  }

  static int64_t longest(const std::vector<Tile>& tiles) {
    int64_t keys = 0;
    for (const Tile& tile : tiles) keys = std::max(keys, tile.position + tile.tokens);
    return keys;
  }

  static std::vector<Tile> tiles_of(const AttentionArgs& a) {
    std::vector<Tile> tiles;
    const int64_t most = std::max<int64_t>(1, kTileQueries / (a.H / a.Hkv));
    for (int64_t r = 0; r < a.R; ++r) {
      const int64_t start = a.query_start[r], length = a.query_len[r], context = a.context_len[r];
      const bool inside = start >= 0 && start + length <= a.T && length <= context && context <= a.W * a.block;
      if (length < 1 || !inside || a.N < 1) continue;  // padding, or memory that must not be read
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
};

}  // namespace MPT_ISA
}  // namespace mpt
