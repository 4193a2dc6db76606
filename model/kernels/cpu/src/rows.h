// The preparation of a row of inputs for the product: norm, rounding, and its layout in a panel.
#pragma once

#include <cmath>
#include <cstdlib>

#include "simd.h"

namespace mpt {
namespace MPT_ISA {

// Memory of one thread that outlives a call and grows as needed; 64-byte aligned.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  template <class T>
  T* get(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) & ~size_t{63};
    if (bytes > size_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      size_ = bytes;
    }
    return data<T>();
  }
  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Calls f(index, n) for runs of n <= VL that cover [0, count).
template <class F>
MPT_INLINE void for_lanes(int64_t count, F f) {
  int64_t i = 0;
  for (; i + VL <= count; i += VL) f(i, static_cast<int64_t>(VL));
  if (i < count) f(i, count - i);
}

// y = norm(x) over one row of K; x and y may be the same.
inline void normalise(const float* x, float* y, int64_t K, const Norm& norm) {
  float mean = 0;
  if (norm.kind == Norm::kLayer) {
    vf total = {};
    for_lanes(K, [&](int64_t i, int64_t n) { total += load_some<vf>(x + i, n); });
    mean = sum(total) / static_cast<float>(K);
  }
  vf squares = {};
  for_lanes(K, [&](int64_t i, int64_t n) {
    vf v = load_some<vf>(x + i, n) - mean;
    if (n < VL) v = load_some<vf>(&v, n);  // the lanes behind the row's end held -mean
    squares += v * v;
  });
  const float factor = 1.f / std::sqrt(sum(squares) / static_cast<float>(K) + norm.eps);
  for_lanes(K, [&](int64_t i, int64_t n) {
    vf v = (load_some<vf>(x + i, n) - mean) * factor;
    v *= load_some_as_float(norm.weight.dtype, norm.weight.data, i, n);
    if (norm.bias.data) v += load_some_as_float(norm.bias.dtype, norm.bias.data, i, n);
    store_some(y + i, v, n);
  });
}

// Rows of inputs go into panels of up to MR rows, which lie step by step: the inputs of one step of the product
// from all its rows are next to each other. Rows are distributed evenly, so that no panel is much smaller than another.
struct Panels {
  Panels(int64_t rows, int64_t most) : rows(rows), count((rows + most - 1) / most) {}
  int64_t first(int64_t panel) const { return rows / count * panel + (panel < rows % count ? panel : rows % count); }
  int64_t size(int64_t panel) const { return first(panel + 1) - first(panel); }
  int64_t rows, count;
};

}  // namespace MPT_ISA
}  // namespace mpt
