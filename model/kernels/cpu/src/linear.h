// Linear layers over packed weights: y = combine(activation(norm(x) W^T + b), other).
//
// Every output is one running sum along K in its own lane, so a row's result does not depend on the rows beside it.
// bfloat16 weights are multiplied with inputs rounded to bfloat16, quantised weights with inputs quantised per row and
// group: sums within a group are exact integers, and are added as float32 in the order of the groups.
#pragma once

#include <algorithm>
#include <vector>

#include "rows.h"
#include "work.h"
#include "vector_math.h"
#include "weight_formats.h"

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

// Prepared inputs, row panel after row panel: in one [steps, rows] words of four bytes; where they are quantised, the
// sums and scales of their groups [groups, rows].
struct Inputs {
  Scratch words, sums, scales;
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
  static constexpr int kRows = kRegisters == 32 ? kRowTile : kRowTile / 2;  // rows of inputs of a pass
  static constexpr int kPasses = kPanel / (kPair * VL);                     // over a panel, a pair of vectors each
  static constexpr int64_t kAhead = 4096;                                   // bytes of weights to prefetch ahead of use
  static constexpr int64_t kAloneBytes = 128 * 1024;    // weights and products below which a second thread
  static constexpr int64_t kAloneProducts = 1'500'000;  // costs more than it saves
  static constexpr int64_t kOwnNumbers = 8 * 1024;      // inputs up to which each thread prepares them for itself

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
        steps_((a.K + Format::kInputs - 1) / Format::kInputs),
        group_(Format::kGrouped     ? a.group
               : Format::kQuantised ? kInt8InputGroup
                                    : a.K),
        groups_((a.K + group_ - 1) / group_),
        runs_((a.N + kPanel - 1) / kPanel, threads),
        // Rows are split too where there are too few panels to keep every thread busy.
        cuts_(std::clamp<int64_t>(4 * threads / ((a.N + kPanel - 1) / kPanel), 1, row_panels_.count)),
        shared_(a.M * a.K > kOwnNumbers ? &inputs : nullptr) {
    if (shared_) reserve(*shared_);
  }

  void add_to(Phases& phases) override {
    const auto multiply = [](void* self, int64_t tile) { static_cast<Linear*>(self)->multiply_tile(tile); };
    if (shared_) {
      const auto prepare = [](void* self, int64_t row_panel) {
        Linear* linear = static_cast<Linear*>(self);
        linear->prepare_rows(row_panel, *linear->shared_);
      };
      phases.push_back({row_panels_.count, prepare, this});
      phases.push_back({runs_.count() * cuts_, multiply, this});
    } else {
      const auto prepare = [](void* self) { static_cast<Linear*>(self)->prepare_own(); };
      phases.push_back({runs_.count() * cuts_, multiply, this, prepare});
    }
  }

 private:
  void reserve(Inputs& inputs) const {
    inputs.words.get<uint32_t>(a_.M * steps_);
    if (!Format::kQuantised) return;
    inputs.sums.get<int32_t>(a_.M * groups_);
    inputs.scales.get<float>(a_.M * groups_);
  }

  // A thread's own inputs: for few numbers, preparing them again takes less time than waiting for another thread.
  static Inputs& own() {
    thread_local Inputs inputs;
    return inputs;
  }

  void prepare_own() const {
    reserve(own());
    for (int64_t p = 0; p < row_panels_.count; ++p) prepare_rows(p, own());
  }

  void multiply_tile(int64_t tile) const {
    const Inputs& inputs = shared_ ? *shared_ : own();
    const int64_t run = tile / cuts_, cut = tile % cuts_;
    for (int64_t panel = runs_.first(run); panel < runs_.first(run + 1); ++panel) {
      for (int64_t p = row_panels_.count * cut / cuts_; p < row_panels_.count * (cut + 1) / cuts_; ++p) {
        multiply_panels(panel, p, inputs);
      }
    }
  }

  void prepare_rows(int64_t row_panel, const Inputs& inputs) const {
    thread_local Scratch scratch;
    const int64_t padded = (steps_ * Format::kInputs + VL - 1) / VL * VL;
    float* row = scratch.get<float>(padded);
    std::fill(row + a_.K, row + padded, 0.f);
    const int64_t first = row_panels_.first(row_panel), rows = row_panels_.size(row_panel);
    for (int64_t m = 0; m < rows; ++m) {
      const float* x = a_.x + (a_.rows ? a_.rows[first + m] : first + m) * a_.K;
      if (a_.norm.kind == Norm::kNone) {
        std::copy(x, x + a_.K, row);
      } else {
        normalise(x, row, a_.K, a_.norm);
      }
      if constexpr (Format::kQuantised) quantise(row, inputs, first * groups_ + m, rows);
      if constexpr (Format::kInputs == 2) round(row, padded);
      // Four bytes of each step lie at the front of `row` now.
      uint32_t* to = inputs.words.data<uint32_t>() + first * steps_ + m;
      for (int64_t s = 0; s < steps_; ++s) std::memcpy(to + s * rows, reinterpret_cast<char*>(row) + 4 * s, 4);
    }
  }

  // float32 -> bfloat16, in place from the front
  static void round(float* row, int64_t count) {
    char* to = reinterpret_cast<char*>(row);
    for (int64_t i = 0; i < count; i += VL) store(to + 2 * i, to_bf16(load<vf>(row + i)));
  }

  // float32 -> int8, in place from the front; sums and scales of the groups go to `at`, `stride` apart
  void quantise(float* row, const Inputs& inputs, int64_t at, int64_t stride) const {
    typedef int8_t vb __attribute__((vector_size(VL)));
    constexpr float kTiny = 1e-30f;      // groups below it become zero: 127 / most would overflow
    const vf shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    char* to = reinterpret_cast<char*>(row);
    int32_t* sums = inputs.sums.data<int32_t>() + at;
    float* scales = inputs.scales.data<float>() + at;
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t begin = g * group_, count = std::min(group_, steps_ * 4 - begin);
      vf top = {}, none = {};
      for_lanes(count, [&](int64_t i, int64_t n) {
        const vf v = load_some<vf>(row + begin + i, n);
        top = max(abs(v), top);
        none += v - v;
      });
      const float missing = sum(none);  // 0, or NaN where an input is not a finite number: then so is the result
      const float most = largest(top), factor = most > kTiny ? 127.f / most : 0.f;
      vi total = {};
      for_lanes(count, [&](int64_t i, int64_t n) {
        const vi whole = bits<vi>(load_some<vf>(row + begin + i, n) * factor + shift) - bits<vi>(shift);
        total += whole;
        store_some(to + begin + i, __builtin_convertvector(whole, vb), n);
      });
      int32_t sum = 0;
      for (int i = 0; i < VL; ++i) sum += total[i];
      sums[g * stride] = sum;
      scales[g * stride] = most / 127.f + missing;
    }
  }

  void multiply_panels(int64_t panel, int64_t row_panel, const Inputs& inputs) const {
    switch (row_panels_.size(row_panel)) {
      case 1: return multiply<1>(panel, row_panel, inputs);
      case 2: return multiply<2>(panel, row_panel, inputs);
      case 3: return multiply<3>(panel, row_panel, inputs);
      case 4: return multiply<4>(panel, row_panel, inputs);
      case 5: return multiply<5>(panel, row_panel, inputs);
      case 6: return multiply<6>(panel, row_panel, inputs);
      default:
        if constexpr (kRows == 12) return multiply_many(panel, row_panel, inputs);
    }
  }

  void multiply_many(int64_t panel, int64_t row_panel, const Inputs& inputs) const {
    switch (row_panels_.size(row_panel)) {
      case 7: return multiply<7>(panel, row_panel, inputs);
      case 8: return multiply<8>(panel, row_panel, inputs);
      case 9: return multiply<9>(panel, row_panel, inputs);
      case 10: return multiply<10>(panel, row_panel, inputs);
      case 11: return multiply<11>(panel, row_panel, inputs);
      default: return multiply<12>(panel, row_panel, inputs);
    }
  }

  // R rows against one panel of 32 features
  template <int R>
  __attribute__((noinline)) void multiply(int64_t panel, int64_t row_panel, const Inputs& inputs) const {
    const int64_t first = row_panels_.first(row_panel);
    const uint8_t* w = static_cast<const uint8_t*>(a_.weight) + panel * steps_ * Format::kPanelBytes;
    const uint32_t* x = inputs.words.data<uint32_t>() + first * steps_;
    alignas(64) float tile[R][kPanel];
    for (int pass = 0; pass < kPasses; ++pass) {
      vf sums[R][kPair];
      if constexpr (Format::kQuantised) {
        sum_groups<R>(sums, x, w, inputs, first, panel, pass);
      } else {
        for (auto& row : sums) row[0] = row[1] = vf{};
        add_steps<R>(sums, x, w + pass * kPair * 4 * VL, 0, steps_);
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kPair; ++v) store(tile[r] + feature<Format>(pass, v), sums[r][v]);
      }
    }
    for (int r = 0; r < R; ++r) finish(tile[r], first + r, panel * kPanel);
  }

  template <int R>
  MPT_INLINE void sum_groups(vf (&sums)[R][kPair], const uint32_t* x, const uint8_t* w, const Inputs& inputs,
                             int64_t first, int64_t panel, int pass) const {
    w += pass * (Format::kGrouped ? 1 : kPair) * 4 * VL;
    const int64_t steps_per_group = group_ / Format::kInputs;
    for (auto& row : sums) row[0] = row[1] = vf{};
    for (int64_t g = 0; g < groups_; ++g) {
      const int32_t* input_sums = inputs.sums.data<int32_t>() + first * groups_ + g * R;
      const float* input_scales = inputs.scales.data<float>() + first * groups_ + g * R;
      vi whole[R][kPair];
      for (int r = 0; r < R; ++r) whole[r][0] = whole[r][1] = splat(input_sums[r] * -Format::kOffset);
      add_steps<R>(whole, x, w, g * steps_per_group, std::min((g + 1) * steps_per_group, steps_));
#pragma GCC unroll 2
      for (int v = 0; v < kPair; ++v) {
        vf scale = {};
        if constexpr (Format::kGrouped) {
          scale = from_f16(a_.group_scale + (panel * groups_ + g) * kPanel + feature<Format>(pass, v));
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
                                   int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      typename Format::W ws[kPair];
      Format::weights(w + s * Format::kPanelBytes, ws);
      __builtin_prefetch(w + s * Format::kPanelBytes + kAhead);
      if constexpr (Format::kPanelBytes == 128) __builtin_prefetch(w + s * Format::kPanelBytes + kAhead + 64);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        sums[r][0] = Format::add(sums[r][0], x[s * R + r], ws[0]);
        sums[r][1] = Format::add(sums[r][1], x[s * R + r], ws[1]);
      }
    }
  }

  // Finishes one row's features from n0 on: scale, bias, activation, and combination.
  void finish(float* sums, int64_t row, int64_t n0) const {
    const int64_t width = std::min(kPanel, a_.N - n0), at = row * a_.N + n0;
    if constexpr (Format::kQuantised) {
      for_lanes(width, [&](int64_t i, int64_t n) {
        store(sums + i, load<vf>(sums + i) * load_some<vf>(a_.row_scale + n0 + i, n));
      });
    }
    if (a_.bias.data) {
      for_lanes(width, [&](int64_t i, int64_t n) {
        store(sums + i, load<vf>(sums + i) + load_some_as_float(a_.bias.dtype, a_.bias.data, n0 + i, n));
      });
    }
    if (a_.clip > 0) {
      const vf most = splat(a_.clip);  // the order of the operands keeps NaN
      for (int64_t i = 0; i < kPanel; i += VL) store(sums + i, min(most, max(-most, load<vf>(sums + i))));
    }
    if (a_.activation != Activation::kNone) {
      for (int64_t i = 0; i < kPanel; i += VL) store(sums + i, activate(a_.activation, load<vf>(sums + i)));
    }
    for_lanes(width, [&](int64_t i, int64_t n) {
      vf v = load<vf>(sums + i);
      if (a_.combine == Combine::kAdd) v += load_some<vf>(a_.other + at + i, n);
      if (a_.combine == Combine::kMultiply) v *= load_some<vf>(a_.other + at + i, n);
      store_some(a_.y + at + i, v, n);
    });
  }

  const LinearArgs a_;
  const Panels row_panels_;
  const int64_t steps_, group_, groups_;
  const Runs runs_;
  const int64_t cuts_;
  Inputs* const shared_;  // null: each thread prepares its own
};

}  // namespace MPT_ISA
}  // namespace mpt
