// exp, the error function's tail and what follows from them, to float32 accuracy. The polynomials are least-squares
// fits at Chebyshev nodes in float64; figures at each are the largest error over the whole range.
#pragma once

#include "simd.h"

namespace mpt {
namespace MPT_ISA {

// Relative error below 2e-7 down to exp(-87.3); 0 below that. No infinity: above 88.3 the value of 88.3.
MPT_INLINE vf exp(vf x) {
  const vi gone = x < -87.3f;
  x = min(max(x, splat(-87.3f)), splat(88.3f));
  const vf shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf shifted = x * 1.44269504f + shift;
  const vf n = shifted - shift;
  const vf r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // |r| <= ln(2) / 2
  vf p = splat(0.00138294196f);
  p = p * r + 0.00837478414f;
  p = p * r + 0.0416683592f;
  p = p * r + 0.166664213f;
  p = p * r + 0.49999991f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const vi exponent = (bits<vi>(shifted) - bits<vi>(shift) + 127) << 23;
  return select(gone, vf{}, p * bits<vf>(exponent));
}

MPT_INLINE vf sigmoid(vf x) { return 1.f / (1.f + exp(-x)); }

MPT_INLINE vf tanh(vf x) {
  const vf e = exp(abs(x) * -2.f);
  const vf t = select(x == x, (1.f - e) / (1.f + e), x);  // NaN stays NaN
  // Near 0 that quotient loses digits: the odd series instead.
  const vf s = x * x;
  const vf series = x * (1.f + s * (-0.333333333f + s * (0.133333333f + s * -0.0539682540f)));
  return select(abs(x) < 0.0625f, series, select(x < 0.f, -t, t));
}

// The normal distribution's cumulative function; absolute error below 3e-7.
MPT_INLINE vf normal_cdf(vf x) {
  const vf z = min(abs(x) * 0.707106781f, splat(9.3f));
  const vf t = 1.f / (1.f + 0.4f * z);
  vf p = splat(0.0216734800f);
  p = p * t - 0.0377306715f;
  p = p * t - 0.14797654749f;
  p = p * t + 0.384365975856f;
  p = p * t - 0.1555814296f;
  p = p * t + 0.3135395050f;
  p = p * t + 0.1625226885f;
  p = p * t + 0.2344130576f;
  p = p * t + 0.2247302085f;
  p = p * t + 4.37646303908e-05f;  // exp(z^2) erfc(z)
  const vf tail = 0.5f * p * exp(-(z * z));
  return select(x < 0.f, tail, 1.f - tail);
}

// Applies an activation to `count` numbers in place, a multiple of VL. The choice is made once, so that the processor
// computes several vectors at a time.
inline void activate(Activation a, float* numbers, int64_t count) {
  const auto each = [&](auto f) {
    for (int64_t i = 0; i < count; i += VL) store(numbers + i, f(load<vf>(numbers + i)));
  };
  switch (a) {
    case Activation::kNone: return;
    case Activation::kGelu: return each([](vf x) { return x * normal_cdf(x); });
    case Activation::kGeluTanh:
      return each([](vf x) { return 0.5f * x * (1.f + tanh(0.797884561f * (x + 0.044715f * x * x * x))); });
    case Activation::kSilu: return each([](vf x) { return x * sigmoid(x); });
    case Activation::kRelu: return each([](vf x) { return max(x, vf{}); });
    case Activation::kQuickGelu: return each([](vf x) { return x * sigmoid(1.702f * x); });
  }
}

}  // namespace MPT_ISA
}  // namespace mpt
