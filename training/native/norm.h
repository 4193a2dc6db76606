// LayerNorm without a bias, and its gradient, of rows of d numbers.
#pragma once

#include <cmath>

#include "vectors.h"

namespace training {

struct Moments {
  float mean, inverse;  // of the deviation
};

inline Moments norm(const float* x, const float* weight, int d, float epsilon, Bf16* out) {
  Vector total = splat(0.f), squares = splat(0.f);
  for (int i = 0; i < d; i += kLanes) total = total + load(x + i);
  const float mean = sum(total) / d;
  for (int i = 0; i < d; i += kLanes) {
    const Vector c = load(x + i) - splat(mean);
    squares = squares + c * c;
  }
  const float inverse = 1.f / std::sqrt(sum(squares) / d + epsilon);
  for (int i = 0; i < d; i += kLanes) {
    store(out + i, (load(x + i) - splat(mean)) * splat(inverse) * load(weight + i));
  }
  return {mean, inverse};
}

// Adds the gradient of x to dx, and that of the weight to d_weight.
inline void norm_gradient(const float* x, const float* weight, Moments moments, const float* dy, int d, float* dx,
                          float* d_weight) {
  const Vector mean = splat(moments.mean), inverse = splat(moments.inverse);
  Vector total = splat(0.f), along = splat(0.f);
  for (int i = 0; i < d; i += kLanes) {
    const Vector unit = (load(x + i) - mean) * inverse, g = load(dy + i) * load(weight + i);
    store(d_weight + i, load(d_weight + i) + load(dy + i) * unit);
    total = total + g;
    along = along + g * unit;
  }
  const Vector level = splat(sum(total) / d), slope = splat(sum(along) / d);
  for (int i = 0; i < d; i += kLanes) {
    const Vector unit = (load(x + i) - mean) * inverse, g = load(dy + i) * load(weight + i);
    store(dx + i, load(dx + i) + inverse * (g - level - unit * slope));
  }
}

}  // namespace training
