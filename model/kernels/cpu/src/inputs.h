// The inputs of a product, prepared for it: normalised, rounded or quantised, and laid out step by step.
#pragma once

#include <algorithm>

#include "rows.h"
#include "weight_formats.h"

namespace mpt {
namespace MPT_ISA {

// Prepared inputs, row panel after row panel: in one [steps, rows] words of four bytes; where they are quantised, of
// each group [groups, rows] its scale and what its sums of products start with, which takes the weights' offset back.
struct Inputs {
  Scratch words, starts, scales;
};

// Prepares the rows of a call's inputs, up to `kTogether` of a row panel at a time: few enough that threads share the
// rows of a small batch evenly, and as many as are transposed in registers.
template <class Format>
class InputRows {
 public:
  static constexpr int64_t kTogether = 4;

  InputRows(const LinearArgs& a, const Panels& panels, int64_t group)
      : a_(a),
        panels_(panels),
        steps_((a.K + Format::kInputs - 1) / Format::kInputs),
        group_(group),
        groups_((a.K + group - 1) / group),
        parts_((panels.size(0) + kTogether - 1) / kTogether) {}

  int64_t steps() const { return steps_; }
  int64_t groups() const { return groups_; }
  int64_t parts() const { return panels_.count * parts_; }

  void reserve(Inputs& inputs) const {
    inputs.words.get<uint32_t>(a_.M * steps_);
    if (!Format::kQuantised) return;
    inputs.starts.get<int32_t>(a_.M * groups_);
    inputs.scales.get<float>(a_.M * groups_);
  }

  void prepare(int64_t part, const Inputs& inputs) const {
    thread_local Scratch scratch;
    const int64_t padded = (steps_ * Format::kInputs + VL - 1) / VL * VL;
    float* numbers = scratch.get<float>(kTogether * padded);
    const int64_t panel = part / parts_, first = panels_.first(panel), rows = panels_.size(panel);
    const int64_t begin = part % parts_ * kTogether, end = std::min(begin + kTogether, rows);
    for (int64_t m = begin; m < end; ++m) {
      float* row = numbers + (m - begin) * padded;
      std::fill(row + a_.K, row + padded, 0.f);
      const float* x = a_.x + (a_.rows ? a_.rows[first + m] : first + m) * a_.K;
      if (a_.norm.kind != Norm::kNone) {
        normalise(x, row, a_.K, a_.norm);
      } else if (Format::kInputs == 1 || a_.K % VL) {
        std::copy(x, x + a_.K, row);
      }
      const float* from = a_.norm.kind != Norm::kNone || a_.K % VL ? row : x;
      if constexpr (Format::kQuantised) quantise(from, row, inputs, first * groups_ + m, rows);
      if constexpr (Format::kInputs == 2) round(from, row, padded);
    }
    // Four bytes of each step lie at the front of each row now.
    uint32_t* to = inputs.words.data<uint32_t>() + first * steps_ + begin;
    interleave(reinterpret_cast<const uint32_t*>(numbers), padded, end - begin, to, rows);
  }

 private:
  // rows [count, steps], `stride` apart -> to [steps, count], `rows` apart
  void interleave(const uint32_t* from, int64_t stride, int64_t count, uint32_t* to, int64_t rows) const {
    int64_t s = 0;
#if defined(__x86_64__)
    for (; count == kTogether && s + 4 <= steps_; s += 4) {
      __m128i r[4];
      for (int i = 0; i < 4; ++i) r[i] = load<__m128i>(from + i * stride + s);
      const __m128i low01 = _mm_unpacklo_epi32(r[0], r[1]), low23 = _mm_unpacklo_epi32(r[2], r[3]);
      const __m128i high01 = _mm_unpackhi_epi32(r[0], r[1]), high23 = _mm_unpackhi_epi32(r[2], r[3]);
      store(to + s * rows, _mm_unpacklo_epi64(low01, low23));
      store(to + (s + 1) * rows, _mm_unpackhi_epi64(low01, low23));
      store(to + (s + 2) * rows, _mm_unpacklo_epi64(high01, high23));
      store(to + (s + 3) * rows, _mm_unpackhi_epi64(high01, high23));
    }
#endif
    for (; s < steps_; ++s) {
      for (int64_t m = 0; m < count; ++m) to[s * rows + m] = load<uint32_t>(from + m * stride + s);
    }
  }

  // float32 -> bfloat16, to the front of `row`, which may be `from`
  static void round(const float* from, float* row, int64_t count) {
    char* to = reinterpret_cast<char*>(row);
    for (int64_t i = 0; i < count; i += VL) store(to + 2 * i, to_bf16(load<vf>(from + i)));
  }

  // float32 -> int8, to the front of `row`, which may be `from`; starts and scales of the groups go to `at`, `stride`
  // apart
  void quantise(const float* from, float* row, const Inputs& inputs, int64_t at, int64_t stride) const {
    constexpr float kTiny = 1e-30f;      // groups below it become zero: 127 / most would overflow
    const vf shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    char* to = reinterpret_cast<char*>(row);
    int32_t* starts = inputs.starts.data<int32_t>() + at;
    float* scales = inputs.scales.data<float>() + at;
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t begin = g * group_, count = std::min(group_, steps_ * 4 - begin);
      vf top = {}, none = {};
      for_lanes(count, [&](int64_t i, int64_t n) {
        const vf v = load_some<vf>(from + begin + i, n);
        top = max(abs(v), top);
        none += v - v;
      });
      const float missing = sum(none);  // 0, or NaN where an input is not a finite number: then so is the result
      const float most = largest(top), factor = most > kTiny ? 127.f / most : 0.f;
      vi total = {};
      for_lanes(count, [&](int64_t i, int64_t n) {
        const vi whole = bits<vi>(load_some<vf>(from + begin + i, n) * factor + shift) - bits<vi>(shift);
        total += whole;
        store_some(to + begin + i, to_bytes(whole), n);
      });
      int32_t sum = 0;
      for (int i = 0; i < VL; ++i) sum += total[i];
      starts[g * stride] = sum * -Format::kOffset;
      scales[g * stride] = most / 127.f + missing;
    }
  }

  const LinearArgs& a_;
  const Panels& panels_;
  const int64_t steps_, group_, groups_;
  const int64_t parts_;  // of a row panel
};

}  // namespace MPT_ISA
}  // namespace mpt
