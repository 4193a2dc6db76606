// The optimisers of `training/muon.py` for one parameter at a time: Muon for the matrices of the blocks, Adam for the
// rest. The products of Muon's iteration round their factors to bfloat16.
#pragma once

#include <vector>

#include "norm.h"
#include "products.h"

namespace training {

// Moves all singular values of X [rows, columns] to about one (Newton-Schulz), in place.
class Orthogonalizer {
 public:
  void run(float* x, int rows, int columns) {
    const int64_t count = int64_t{rows} * columns;
    const int side = std::min(rows, columns);
    rounded_.resize(count), packed_.resize(count), columns_.resize(count);
    gram_.resize(size_t(side) * side), small_.resize(gram_.size()), small_packed_.resize(gram_.size());
    scale(x, count);
    for (int i = 0; i < kIterations; ++i) iterate(x, rows, columns);
  }

 private:
  static constexpr int kIterations = 5;
  static constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;

  static void scale(float* x, int64_t count) {
    double squares = 0;
    for (int64_t i = 0; i < count; i += kLanes) squares += sum(load(x + i) * load(x + i));
    const Vector factor = splat(float(1 / (std::sqrt(squares) + 1e-7)));
    for (int64_t i = 0; i < count; i += kLanes) store(x + i, load(x + i) * factor);
  }

  // X -> a X + (b G + c G G) X with G = X X^T, or from the right with G = X^T X where X is tall.
  void iterate(float* x, int rows, int columns) {
    const bool tall = rows > columns;
    const int side = tall ? columns : rows;
    for (int64_t i = 0; i < int64_t{rows} * columns; i += kLanes) store(&rounded_[i], load(x + i));
    pack_rows(rounded_.data(), rows, columns, columns, packed_.data());
    const auto into_gram = [this, side](int m, int n, Vector v) {
      store(&gram_[size_t(m) * side + n], v);
      store(&small_[size_t(m) * side + n], v);
    };
    if (tall) {
      multiply(Transposed{packed_.data(), rows}, packed_.data(), side, side, rows, into_gram);
    } else {
      pack_columns(rounded_.data(), columns, rows, columns_.data());
      multiply(Rows{rounded_.data(), columns}, columns_.data(), side, side, columns, into_gram);
    }
    pack_rows(small_.data(), side, side, side, small_packed_.data());
    square_.resize(small_.size());
    multiply(Rows{small_.data(), side}, small_packed_.data(), side, side, side, [this, side](int m, int n, Vector v) {
      store(&square_[size_t(m) * side + n], splat(kB) * load(&gram_[size_t(m) * side + n]) + splat(kC) * v);
    });
    const auto into_x = [=](int m, int n, Vector v) {
      float* at = x + ptrdiff_t{m} * columns + n;
      store(at, splat(kA) * load(at) + v);
    };
    if (tall) {
      pack_rows(square_.data(), side, side, side, small_packed_.data());
      multiply(Rows{rounded_.data(), columns}, small_packed_.data(), rows, columns, side, into_x);
    } else {
      multiply(Rows{square_.data(), side}, packed_.data(), rows, columns, side, into_x);
    }
  }

  std::vector<Bf16> rounded_, packed_, columns_, small_, small_packed_, square_;
  std::vector<float> gram_;
};

constexpr float kMomentum = 0.95f, kBeta1 = 0.9f, kBeta2 = 0.95f, kAdamEpsilon = 1e-8f;

// One matrix [rows, columns] of a parameter.
inline void muon_update(float* weight, const float* gradient, float* first, int rows, int columns, float rate,
                        std::vector<float>* direction, Orthogonalizer* orthogonalizer) {
  const int64_t count = int64_t{rows} * columns;
  direction->resize(count);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vector g = load(gradient + i), momentum = splat(kMomentum) * load(first + i) + g;
    store(first + i, momentum);
    store(&(*direction)[i], g + splat(kMomentum) * momentum);
  }
  orthogonalizer->run(direction->data(), rows, columns);
  const Vector factor = splat(rate * std::sqrt(std::max(1.f, float(rows) / float(columns))));
  for (int64_t i = 0; i < count; i += kLanes) store(weight + i, load(weight + i) - factor * load(&(*direction)[i]));
}

// step: the number of this update, from 1.
inline void adam_update(float* weight, const float* gradient, float* first, float* second, int64_t count, int step,
                        float rate) {
  const float bias1 = 1 / (1 - std::pow(kBeta1, float(step))), bias2 = 1 / (1 - std::pow(kBeta2, float(step)));
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vector g = load(gradient + i);
    const Vector mean = splat(kBeta1) * load(first + i) + splat(1 - kBeta1) * g;
    const Vector square = splat(kBeta2) * load(second + i) + splat(1 - kBeta2) * g * g;
    store(first + i, mean);
    store(second + i, square);
    const Vector size = _mm512_sqrt_ps(square * splat(bias2)) + splat(kAdamEpsilon);
    store(weight + i, load(weight + i) - splat(rate * bias1) * mean / size);
  }
}

}  // namespace training
