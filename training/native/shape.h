// The sizes of a model and the order of its parameters: those of the JAX tree `Weights`.
#pragma once

#include <cstdint>

namespace training {

// All in one order with `training/native_step.py`.
struct Shape {
  int32_t d, layers, heads, hidden, vocabulary, end_of_text;
  float bias_max, epsilon;

  int parameters() const { return 2 + 6 * layers; }
};

// Places of a block's parameters after the embedding [vocabulary, d]; the last norm follows the blocks.
enum Part { kNorm1, kQkv, kOut, kNorm2, kUp, kDown, kParts };

inline int place(int layer, Part part) { return 1 + kParts * layer + part; }

struct Size {
  int rows, columns;  // one row for a norm
  int64_t count() const { return int64_t{rows} * columns; }
};

inline Size size_of(const Shape& s, int index) {
  if (index == 0) return {s.vocabulary, s.d};
  if (index == s.parameters() - 1) return {1, s.d};
  switch ((index - 1) % kParts) {
    case kQkv: return {3 * s.d, s.d};
    case kOut: return {s.d, s.d};
    case kUp: return {s.hidden, s.d};
    case kDown: return {s.d, s.hidden};
    default: return {1, s.d};
  }
}

inline bool is_matrix(const Shape& s, int index) { return index > 0 && size_of(s, index).rows > 1; }

}  // namespace training
