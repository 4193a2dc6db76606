// Rotary position embedding: pairs (x_i, x_{i + hd/2}) of each head are turned by angles that grow with the position
// (model/ops/rope.py). One function computes it for steps and for single calls, hence the same bits for both.
#pragma once

#include <algorithm>

#include "rows.h"

namespace mpt {
namespace MPT_ISA {

// Cosines and sines of position * frequency, that product rounded to float32 as in the definition; within 1e-7 for
// angles below 2^30. Reduced to a quarter turn and computed in double, by the series of both functions.
__attribute__((noinline)) inline void turns(int32_t position, const float* frequencies, int64_t count, float* cosines,
                                            float* sines) {
  constexpr double kShift = 6755399441055744.;  // 1.5 * 2^52: adding it rounds to an integer
  for (int64_t i = 0; i < count; ++i) {
    const float angle = static_cast<float>(position) * frequencies[i];
    const double shifted = angle * 0.63661977236758134 + kShift;  // quarter turns
    const double r = angle - (shifted - kShift) * 1.5707963267948966, square = r * r;
    const double s = r * (1 + square * (-1. / 6 + square * (1. / 120 + square * (-1. / 5040 + square / 362880))));
    const double c =
        1 + square * (-.5 + square * (1. / 24 + square * (-1. / 720 + square * (1. / 40320 - square / 3628800))));
    const int64_t quarter = bits<int64_t>(shifted);
    const bool odd = quarter & 1;
    const double cosine = odd ? s : c, sine = odd ? c : s;
    cosines[i] = static_cast<float>((quarter + 1) & 2 ? -cosine : cosine);
    sines[i] = static_cast<float>(quarter & 2 ? -sine : sine);
  }
}

// Turns the heads x [heads, hd] of a token -> y, which may be x.
__attribute__((noinline)) inline void rotate_token(const float* x, float* y, int64_t heads, int64_t hd,
                                                   int32_t position, const float* frequencies) {
  thread_local Scratch scratch;
  const int64_t half = hd / 2;
  float* cosines = scratch.get<float>(hd);
  float* sines = cosines + half;
  turns(position, frequencies, half, cosines, sines);
  for (int64_t h = 0; h < heads; ++h, x += hd, y += hd) {
    for_lanes(half, [&](int64_t i, int64_t n) {
      const vf cosine = load_some<vf>(cosines + i, n), sine = load_some<vf>(sines + i, n);
      const vf first = load_some<vf>(x + i, n), second = load_some<vf>(x + half + i, n);
      store_some(y + i, first * cosine - second * sine, n);
      store_some(y + half + i, second * cosine + first * sine, n);
    });
  }
}

inline void rope(const RopeArgs& a, Pool& pool) {
  constexpr int64_t kTokensPerChunk = 16;
  auto tokens = [&](int64_t chunk) {
    const int64_t end = std::min((chunk + 1) * kTokensPerChunk, a.T), width = a.heads * a.hd;
    for (int64_t t = chunk * kTokensPerChunk; t < end; ++t) {
      rotate_token(a.x + t * width, a.y + t * width, a.heads, a.hd, a.positions[t], a.frequencies);
    }
  };
  const int threads = a.T * a.heads * a.hd < 100'000 ? 1 : pool.threads();
  run_phase(pool, threads, phase((a.T + kTokensPerChunk - 1) / kTokensPerChunk, tokens));
}

}  // namespace MPT_ISA
}  // namespace mpt
