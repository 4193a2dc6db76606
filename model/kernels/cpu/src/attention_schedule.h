// What the attention of a step consists of, which is the same for all layers: tiles of queries, and the order of heads.
#pragma once

#include <algorithm>
#include <numeric>
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

  explicit AttentionSchedule(const AttentionArgs& a)
      : tiles(tiles_of(a)),
        alibi_horizon(a.alibi_horizon && a.key_norms && a.slopes && longest(tiles) > kKeys),
        allowances(alibi_horizon ? allowances_of(a) : std::vector<float>()),
        heads(alibi_horizon ? heads_of(a) : std::vector<int64_t>()) {
    for (const Tile& tile : tiles) {
      products += 2 * tile.products * a.H * a.hd;
      keys += tile.position + tile.tokens - first_key(a, tile);
      short_tiles = short_tiles && tile.tokens <= kShort;
    }
  }

  int64_t head(int64_t i) const { return heads.empty() ? i : heads[i]; }

  // Position of the first key that a tile may see, or of one before it.
  static int64_t first_key(const AttentionArgs& a, const Tile& tile) {
    return a.window < 0 ? 0 : std::max<int64_t>(tile.position - a.window, 0) / kKeys * kKeys;
  }

  const std::vector<Tile> tiles;
  const bool alibi_horizon;             // whether a query may have keys to skip
  const std::vector<float> allowances;  // [H] of the ALiBi horizon
  const std::vector<int64_t> heads;     // of keys, in the order of work
  bool short_tiles = true;              // whether all have few tokens
  int64_t products = 0, keys = 0;       // of queries and keys, in all heads; of the tiles, for one head of keys

 private:
  static constexpr int64_t kShort = 8;
  // Queries of a tile, over its heads; more where more heads than that share one head of keys.
  static constexpr int64_t kTileQueries = 128 / kQueries * kQueries;

  static std::vector<float> allowances_of(const AttentionArgs& a) {
    std::vector<float> allowances(a.H);
    std::transform(a.slopes, a.slopes + a.H, allowances.begin(), horizon_allowance);
    return allowances;
  }

  // Heads of keys, those with the farthest horizon first: they take longest, and the last units should be short.
  static std::vector<int64_t> heads_of(const AttentionArgs& a) {
    const int64_t group = a.H / a.Hkv;
    std::vector<int64_t> heads(a.Hkv);
    std::iota(heads.begin(), heads.end(), 0);
    const auto flattest = [&](int64_t h) {
      return *std::min_element(a.slopes + h * group, a.slopes + (h + 1) * group);
    };
    // Not std::stable_sort: parts of it are functions that all instruction sets would share.
    std::sort(heads.begin(), heads.end(),
              [&](int64_t x, int64_t y) { return flattest(x) != flattest(y) ? flattest(x) < flattest(y) : x < y; });
    return heads;
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
