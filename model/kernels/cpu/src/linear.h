// Linear layers over packed weights: y = combine(activation(norm(x) W^T + b), other).
//
// Every output is one running sum along K in its own lane, so a row's result does not depend on the rows beside it.
// bfloat16 weights are multiplied with inputs rounded to bfloat16, quantised weights with inputs quantised per row and
// group: sums within a group are exact integers, and are added as float32 in the order of the groups.
#pragma once

#include <algorithm>
#include <vector>

#include "inputs.h"
#include "vector_math.h"
#include "work.h"

namespace mpt {
namespace MPT_ISA {

// Panels in runs, long ones first: a thread reads contiguous memory as long as it can, which suits prefetching, and
// short runs at the end let the threads finish together.
class Runs {
 public:
  Runs(int64_t panels, int threads) {
    while (first_.back() < panels) {
      const int64_t left = panels - first_.back(), spare = std::max<int64_t>(kMost - count(), 1);
      first_.push_back(first_.back() + std::max<int64_t>({left / (2 * threads), (left + spare - 1) / spare, 1}));
    }
  }
  int64_t count() const { return static_cast<int64_t>(first_.size()) - 1; }
  int64_t first(int64_t run) const { return first_[run]; }

 private:
  static constexpr int64_t kMost = 512;
  std::vector<int64_t> first_{0};
};

// Calls f with the arguments for some of the rows, until all have had their turn: prepared inputs take memory.
template <class F>
void for_row_parts(const LinearArgs& args, F f) {
  constexpr int64_t kRowsAtOnce = 1024;
  for (int64_t row = 0; row < args.M; row += kRowsAtOnce) {
    LinearArgs part = args;
    part.M = std::min(kRowsAtOnce, args.M - row);
    part.y += row * args.N;
    if (part.other) part.other += row * args.N;
    if (args.rows) part.rows += row;
    if (!args.rows) part.x += row * args.K;
    f(part);
  }
}

template <class Format>
class Linear : public Work {
  // Rows of inputs of a pass, whose sums are in registers. Formats with groups have a group's sums too: with fewer
  // rows, fewer of both are moved to memory and back.
  static constexpr int kRows = kRegisters < 32 ? kRowTile / 2 : Format::kGrouped ? kRowTile * 2 / 3 : kRowTile;
  static constexpr int kPasses = kPanel / (kPair * VL);      // over a panel, a pair of vectors each
  static constexpr int kFewRows = Format::kGrouped ? 2 : 4;  // with which reading takes all the time
  static constexpr int64_t kAheadFew = 4096, kAhead = 8192;  // bytes of weights to prefetch ahead of their only use
  static constexpr int64_t kBlockBytes = 64 * 1024;          // of weights that stay in a core's cache for all rows
  static constexpr int64_t kAloneBytes = 128 * 1024;         // weights and products below which a second thread
  static constexpr int64_t kAloneProducts = 1'500'000;       // costs more than it saves
  static constexpr int64_t kOwnNumbers = 8 * 1024;           // inputs up to which each thread prepares them for itself

 public:
  static void run(const LinearArgs& args, Pool& pool) {
    thread_local Inputs inputs;
    const int64_t bytes = args.N * args.K / Format::kInputs * Format::kPanelBytes / kPanel;
    const int threads = bytes < kAloneBytes && args.M * args.N * args.K < kAloneProducts ? 1 : pool.threads();
    for_row_parts(args, [&](const LinearArgs& part) {
      Linear linear(part, threads, inputs);
      Phases phases;
      linear.add_to(phases);
      run_phases(pool, threads, phases.data(), phases.size());
    });
  }

  // `inputs` is memory for the prepared inputs, until the phases are done.
  Linear(const LinearArgs& a, int threads, Inputs& inputs)
      : a_(a),
        row_panels_(a.M, kRows),
        group_(Format::kGrouped     ? a.group
               : Format::kQuantised ? kInt8InputGroup
                                    : a.K),
        rows_(a_, row_panels_, group_),
        runs_((a.N + kPanel - 1) / kPanel, threads),
        // Rows are split too where there are too few panels to keep every thread busy.
        cuts_(std::clamp<int64_t>(4 * threads / ((a.N + kPanel - 1) / kPanel), 1, row_panels_.count)),
        block_(steps_of_block()),
        shared_(a.M * a.K > kOwnNumbers ? &inputs : nullptr) {
    if (shared_) rows_.reserve(*shared_);
  }

  void add_to(Phases& phases) override {
    const auto multiply = [](void* self, int64_t tile) { static_cast<Linear*>(self)->multiply_tile(tile); };
    if (shared_) {
      const auto prepare = [](void* self, int64_t part) {
        Linear* linear = static_cast<Linear*>(self);
        linear->rows_.prepare(part, *linear->shared_);
      };
      phases.push_back({rows_.parts(), prepare, this});
      phases.push_back({runs_.count() * cuts_, multiply, this});
    } else {
      const auto prepare = [](void* self) { static_cast<Linear*>(self)->prepare_own(); };
      phases.push_back({runs_.count() * cuts_, multiply, this, prepare});
    }
  }

 private:
  // Steps of a panel's weights that all rows are multiplied with before the next ones: all where they are read once.
  int64_t steps_of_block() const {
    const int64_t steps = rows_.steps(), most = kBlockBytes / Format::kPanelBytes;
    if (row_panels_.count == 1 || steps <= most) return steps;
    const int64_t blocks = (steps + most - 1) / most, whole = Format::kQuantised ? group_ / Format::kInputs : 1;
    return ((steps + blocks - 1) / blocks + whole - 1) / whole * whole;
  }

  // A thread's own inputs: for few numbers, preparing them again takes less time than waiting for another thread.
  static Inputs& own() {
    thread_local Inputs inputs;
    return inputs;
  }

  void prepare_own() const {
    rows_.reserve(own());
    for (int64_t part = 0; part < rows_.parts(); ++part) rows_.prepare(part, own());
  }

  // Some steps of a panel, and the weights that are prefetched meanwhile: two cache lines a step, `pace` bytes apart
  // from step to step.
  struct Block {
    int64_t panel, begin, end;
    const uint8_t* ahead;
    int64_t pace;
  };

  void multiply_tile(int64_t tile) const {
    thread_local Scratch scratch;
    const Inputs& inputs = shared_ ? *shared_ : own();
    const int64_t run = tile / cuts_, cut = tile % cuts_, steps = rows_.steps();
    const int64_t first = row_panels_.count * cut / cuts_, last = row_panels_.count * (cut + 1) / cuts_;
    const int64_t ahead = row_panels_.size(first) > kFewRows ? kAhead : kAheadFew;
    float* sums = scratch.get<float>(a_.M * kPanel);
    for (int64_t panel = runs_.first(run); panel < runs_.first(run + 1); ++panel) {
      const uint8_t* w = static_cast<const uint8_t*>(a_.weight) + panel * steps * Format::kPanelBytes;
      for (int64_t begin = 0; begin < steps; begin += block_) {
        const int64_t end = std::min(begin + block_, steps);
        Block block{panel, begin, end, w + begin * Format::kPanelBytes + ahead, Format::kPanelBytes};
        if (last - first > 1) {
          // The next block is fetched evenly over the rows.
          block.pace = (Format::kPanelBytes + last - first - 1) / (last - first);
          block.ahead = w + end * Format::kPanelBytes;
        }
        for (int64_t p = first; p < last; ++p) {
          multiply_panels(block, p, inputs, sums);
          block.ahead += block.pace * (end - begin);
        }
      }
    }
  }

  // Multiplies with as many rows as the row panel has, R or more.
  template <int R = 1>
  void multiply_panels(const Block& block, int64_t row_panel, const Inputs& inputs, float* sums) const {
    if constexpr (R < kRows) {
      if (row_panels_.size(row_panel) > R) return multiply_panels<R + 1>(block, row_panel, inputs, sums);
    }
    multiply<R>(block, row_panel, inputs, sums);
  }

  // R rows against a block of a panel of 32 features; `sums` [rows of all, 32] are kept from block to block
  template <int R>
  __attribute__((noinline)) void multiply(const Block& block, int64_t row_panel, const Inputs& inputs,
                                          float* all_sums) const {
    const int64_t first = row_panels_.first(row_panel);
    const uint8_t* w = static_cast<const uint8_t*>(a_.weight) + block.panel * rows_.steps() * Format::kPanelBytes;
    const uint32_t* x = inputs.words.data<uint32_t>() + first * rows_.steps();
    float* tile = all_sums + first * kPanel;
    for (int pass = 0; pass < kPasses; ++pass) {
      vf sums[R][kPair];
      if (block.begin == 0) {
        for (auto& row : sums) row[0] = row[1] = vf{};
      } else {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          for (int v = 0; v < kPair; ++v) sums[r][v] = load<vf>(tile + r * kPanel + feature<Format>(pass, v));
        }
      }
      if constexpr (Format::kQuantised) {
        sum_groups<R>(sums, x, w, inputs, first, block, pass);
      } else {
        add_steps<R>(sums, x, w + pass * kPair * 4 * VL, block, block.begin, block.end);
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kPair; ++v) store(tile + r * kPanel + feature<Format>(pass, v), sums[r][v]);
      }
    }
    if (block.end == rows_.steps()) finish(tile, R, first, block.panel * kPanel);
  }

  template <int R>
  MPT_INLINE void sum_groups(vf (&sums)[R][kPair], const uint32_t* x, const uint8_t* w, const Inputs& inputs,
                             int64_t first, const Block& block, int pass) const {
    w += pass * (Format::kGrouped ? 1 : kPair) * 4 * VL;
    const int64_t steps_per_group = group_ / Format::kInputs, groups = rows_.groups();
    for (int64_t g = block.begin / steps_per_group; g * steps_per_group < block.end; ++g) {
      const int32_t* starts = inputs.starts.data<int32_t>() + first * groups + g * R;
      const float* input_scales = inputs.scales.data<float>() + first * groups + g * R;
      vi whole[R][kPair];
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kPair; ++v) whole[r][v] = splat(starts[r] * multiple<Format>(v, R <= kFewRows));
      }
      add_steps<R>(whole, x, w, block, g * steps_per_group, std::min((g + 1) * steps_per_group, block.end));
#pragma GCC unroll 2
      for (int v = 0; v < kPair; ++v) {
        vf scale = {};
        if constexpr (Format::kGrouped) {
          scale = from_f16(a_.group_scale + (block.panel * groups + g) * kPanel + feature<Format>(pass, v));
          scale *= 1.f / multiple<Format>(v, R <= kFewRows);
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          sums[r][v] += to_float(whole[r][v]) * (Format::kGrouped ? scale * input_scales[r] : splat(input_scales[r]));
        }
      }
    }
  }

  template <int R>
  static MPT_INLINE void add_steps(typename Format::Sum (&sums)[R][kPair], const uint32_t* x, const uint8_t* w,
                                   const Block& block, int64_t begin, int64_t end) {
    int64_t s = begin;
    if constexpr (R <= kFewRows && Format::kGrouped && kPasses == 1) {
      // Twice as many sums, as each step waits for the one before that adds to the same: integers have any order.
      typename Format::Sum odd[R][kPair] = {};
      for (; s + 2 <= end; s += 2) {
        add_step<R>(sums, x + s * R, w + s * Format::kPanelBytes);
        add_step<R>(odd, x + (s + 1) * R, w + (s + 1) * Format::kPanelBytes);
      }
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kPair; ++v) sums[r][v] += odd[r][v];
      }
    }
    const uint8_t* ahead = block.ahead + (s - block.begin) * block.pace;
    for (; s < end; ++s, ahead += block.pace) {
      if constexpr (R <= kFewRows && Format::kGrouped && kPasses > 1) {
        __builtin_prefetch(w + s * Format::kPanelBytes + kAheadFew);  // a second pointer costs up to a tenth here
      } else if constexpr (R > kFewRows || kPasses > 1) {
        prefetch<R>(ahead);
        if constexpr (Format::kPanelBytes == 128) prefetch<R>(ahead + 64);
      }
      add_step<R>(sums, x + s * R, w + s * Format::kPanelBytes);
    }
  }

  // To the second cache, which waits for more lines from memory at a time than the first one does. Few rows that read
  // a panel in one pass need none: the steps follow so fast that the processor fetches the stream itself, and faster.
  template <int R>
  static MPT_INLINE void prefetch(const uint8_t* weights) {
    if constexpr (R > kFewRows) {
      __builtin_prefetch(weights, 0, 2);
    } else {
      __builtin_prefetch(weights);
    }
  }

  template <int R>
  static MPT_INLINE void add_step(typename Format::Sum (&sums)[R][kPair], const uint32_t* x, const uint8_t* w) {
    typename Format::W ws[kPair];
    if constexpr (Format::kGrouped && R > kFewRows) {
      Format::weights_for_many(w, ws);
    } else {
      Format::weights(w, ws);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      sums[r][0] = Format::add(sums[r][0], x[r], ws[0]);
      sums[r][1] = Format::add(sums[r][1], x[r], ws[1]);
    }
  }

  // Finishes the features from n0 on of some rows: scale, bias, activation, and combination. Sums [rows, 32].
  void finish(float* sums, int rows, int64_t first, int64_t n0) const {
    const int64_t width = std::min(kPanel, a_.N - n0);
    if constexpr (Format::kQuantised) {
      for_lanes(width, [&](int64_t i, int64_t n) {
        const vf scale = load_some<vf>(a_.row_scale + n0 + i, n);
        for (int r = 0; r < rows; ++r) store(sums + r * kPanel + i, load<vf>(sums + r * kPanel + i) * scale);
      });
    }
    if (a_.bias.data) {
      for_lanes(width, [&](int64_t i, int64_t n) {
        const vf bias = load_some_as_float(a_.bias.dtype, a_.bias.data, n0 + i, n);
        for (int r = 0; r < rows; ++r) store(sums + r * kPanel + i, load<vf>(sums + r * kPanel + i) + bias);
      });
    }
    if (a_.clip > 0) {
      const vf most = splat(a_.clip);  // the order of the operands keeps NaN
      for (int64_t i = 0; i < rows * kPanel; i += VL) store(sums + i, min(most, max(-most, load<vf>(sums + i))));
    }
    activate(a_.activation, sums, rows * kPanel);
    for (int r = 0; r < rows; ++r) {
      const int64_t at = (first + r) * a_.N + n0;
      for_lanes(width, [&](int64_t i, int64_t n) {
        vf v = load<vf>(sums + r * kPanel + i);
        if (a_.combine == Combine::kAdd) v += load_some<vf>(a_.other + at + i, n);
        if (a_.combine == Combine::kMultiply) v *= load_some<vf>(a_.other + at + i, n);
        store_some(a_.y + at + i, v, n);
      });
    }
  }

  const LinearArgs a_;
  const Panels row_panels_;
  const int64_t group_;
  const InputRows<Format> rows_;
  const Runs runs_;
  const int64_t cuts_;
  const int64_t block_;   // steps of weights
  Inputs* const shared_;  // null: each thread prepares its own
};

}  // namespace MPT_ISA
}  // namespace mpt
