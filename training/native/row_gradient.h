// The loss of one row of documents and the gradient of every parameter: the forward pass of an MPT with ALiBi, without
// biases, with the exact GELU and a tied head, and its backward pass.
#pragma once

#include <cstring>
#include <memory>

#include "attention.h"
#include "norm.h"
#include "shape.h"

namespace training {

// The matrices as panels: `forward` for x W^T, `backward` for dy W.
struct PackedWeights {
  std::vector<std::vector<Bf16>> forward, backward;

  PackedWeights(const Shape& s, const float* const* weights) : forward(s.parameters()), backward(s.parameters()) {
    std::vector<Bf16> rounded;
    for (int p = 0; p < s.parameters(); ++p) {
      const Size size = size_of(s, p);
      if (size.rows == 1) continue;
      rounded.resize(size.count()), forward[p].resize(size.count()), backward[p].resize(size.count());
      for (int64_t i = 0; i < size.count(); i += kLanes) store(&rounded[i], load(weights[p] + i));
      pack_columns(rounded.data(), size.columns, size.rows, forward[p].data());
      pack_rows(rounded.data(), size.rows, size.columns, size.columns, backward[p].data());
    }
  }
};

class RowGradient {
 public:
  // length: the most tokens of a row, a multiple of 32.
  RowGradient(const Shape& s, int length)
      : s_(s), heads_{s.d, s.heads, s.bias_max}, attention_(heads_, length), layers_(s.layers) {
    const size_t T = length, spare = kPanel;
    const size_t width = std::max(s.hidden, 3 * s.d);
    for (auto& layer : layers_) {
      layer.x.resize(T * s.d), layer.middle.resize(T * s.d), layer.qkv.resize((T + spare) * 3 * s.d);
      layer.normed.resize(T * s.d), layer.attended.resize(T * s.d), layer.normed2.resize(T * s.d);
      layer.active.resize(T * s.hidden), layer.slope.resize(T * s.hidden);
      layer.moments.resize(T), layer.moments2.resize(T);
      layer.softmax.reset(new float[heads_.count * (T + spare) * (T + spare)]);  // touched as far as it is used
    }
    x_.resize(T * s.d), dx_.resize(T * s.d), d_normed_.resize((T + spare) * s.d), moments_.resize(T);
    wide_.resize(T * width), rounded_.resize(T * s.d);
    left_.resize(T * width), right_.resize(T * width);
    final_.resize(T * s.d), d_logits_.resize(T * s.vocabulary), left_logits_.resize(T * s.vocabulary);
    logits_.resize(size_t{kPanel} * s.vocabulary);
  }

  // tokens [length + 1], target_weights [length]; adds to gradients; the result is the sum of weighted losses times
  // `scale`, as is the gradient.
  double add(const PackedWeights& packed, const float* const* weights, float* const* gradients, const int32_t* tokens,
             const float* target_weights, int length, float scale) {
    weights_ = weights, gradients_ = gradients, packed_ = &packed;
    int used = length;
    while (used > 0 && target_weights[used - 1] == 0) --used;
    T_ = up_to(used, kPanel);
    if (T_ == 0) return 0;
    find_documents(tokens);
    for (int t = 0; t < T_; ++t) std::memcpy(&x_[size_t(t) * s_.d], weights[0] + ptrdiff_t{tokens[t]} * s_.d, s_.d * 4);
    for (int l = 0; l < s_.layers; ++l) forward(l);
    const double loss = head(tokens, target_weights, scale);
    for (int l = s_.layers - 1; l >= 0; --l) backward(l);
    for (int t = 0; t < T_; ++t) {
      float* to = gradients[0] + ptrdiff_t{tokens[t]} * s_.d;
      for (int i = 0; i < s_.d; i += kLanes) store(to + i, load(to + i) + load(&dx_[size_t(t) * s_.d + i]));
    }
    return loss;
  }

 private:
  struct Layer {
    std::vector<float> x, middle, qkv;  // the residual stream before each half
    std::vector<Bf16> normed, attended, normed2, active, slope;
    std::vector<Moments> moments, moments2;
    std::unique_ptr<float[]> softmax;
  };
  struct Span {
    int first, count;
  };

  void find_documents(const int32_t* tokens) {
    documents_.clear();
    for (int t = 0, first = 0; t < T_; ++t) {
      if (tokens[t] != s_.end_of_text && t != T_ - 1) continue;
      documents_.push_back({first, t + 1 - first});
      first = t + 1;
    }
  }

  void norms(const float* x, const float* weight, Bf16* out, Moments* moments) {
    for (int t = 0; t < T_; ++t) moments[t] = norm(x + t * s_.d, weight, s_.d, s_.epsilon, out + t * s_.d);
  }

  // x W^T of parameter p.
  template <typename Use>
  void project(const Bf16* x, int p, int rows, const Use& use) {
    const Size size = size_of(s_, p);
    multiply(Rows{x, size.columns}, packed_->forward[p].data(), rows, size.rows, size.columns, use);
  }

  // dy W of parameter p, and the gradient dy^T x of W.
  template <typename Use>
  void project_gradient(const Bf16* dy, const Bf16* x, int p, const Use& use) {
    const Size size = size_of(s_, p);
    multiply(Rows{dy, size.rows}, packed_->backward[p].data(), T_, size.columns, size.rows, use);
    weight_gradient(dy, x, p, T_, left_.data());
  }

  void weight_gradient(const Bf16* dy, const Bf16* x, int p, int rows, Bf16* left) {
    const Size size = size_of(s_, p);
    pack_rows(dy, rows, size.rows, size.rows, left);
    pack_rows(x, rows, size.columns, size.columns, right_.data());
    float* to = gradients_[p];
    multiply(Transposed{left, rows}, right_.data(), size.rows, size.columns, rows, [=](int m, int n, Vector v) {
      float* at = to + ptrdiff_t{m} * size.columns + n;
      store(at, load(at) + v);
    });
  }

  void forward(int l) {
    Layer& layer = layers_[l];
    const int d = s_.d, hidden = s_.hidden;
    layer.x.swap(x_);
    norms(layer.x.data(), weights_[place(l, kNorm1)], layer.normed.data(), layer.moments.data());
    project(layer.normed.data(), place(l, kQkv), T_,
            [to = layer.qkv.data(), d](int m, int n, Vector v) { store(to + ptrdiff_t{m} * 3 * d + n, v); });
    float* softmax = layer.softmax.get();
    for (const Span& span : documents_) {
      attention_.forward(&layer.qkv[size_t(span.first) * 3 * d], span.count, softmax,
                         &layer.attended[size_t(span.first) * d]);
      softmax += attention_.room(span.count);
    }
    const auto add_to = [d](const float* before, float* to) {
      return [=](int m, int n, Vector v) { store(to + ptrdiff_t{m} * d + n, load(before + ptrdiff_t{m} * d + n) + v); };
    };
    project(layer.attended.data(), place(l, kOut), T_, add_to(layer.x.data(), layer.middle.data()));
    norms(layer.middle.data(), weights_[place(l, kNorm2)], layer.normed2.data(), layer.moments2.data());
    project(layer.normed2.data(), place(l, kUp), T_,
            [active = layer.active.data(), slope = layer.slope.data(), hidden](int m, int n, Vector v) {
              Vector derivative;
              store(active + ptrdiff_t{m} * hidden + n, gelu(v, &derivative));
              store(slope + ptrdiff_t{m} * hidden + n, derivative);
            });
    project(layer.active.data(), place(l, kDown), T_, add_to(layer.middle.data(), x_.data()));
  }

  // The loss of the tokens that carry weight, and the gradient of the residual stream into dx_.
  double head(const int32_t* tokens, const float* target_weights, float scale) {
    const int d = s_.d, V = s_.vocabulary, last = s_.parameters() - 1;
    chosen_.clear();
    for (int t = 0; t < T_; ++t)
      if (target_weights[t] > 0) chosen_.push_back(t);
    const int count = int(chosen_.size()), rows = up_to(count, kPanel);
    std::fill(final_.begin(), final_.begin() + size_t(rows) * d, 0);
    std::fill(d_logits_.begin(), d_logits_.begin() + size_t(rows) * V, 0);
    for (int i = 0; i < count; ++i) {
      const int t = chosen_[i];
      moments_[i] = norm(&x_[size_t(t) * d], weights_[last], d, s_.epsilon, &final_[size_t(i) * d]);
    }
    double loss = 0;
    for (int first = 0; first < rows; first += kPanel) {
      project(&final_[size_t(first) * d], 0, kPanel,
              [to = logits_.data(), V](int m, int n, Vector v) { store(to + ptrdiff_t{m} * V + n, v); });
      for (int i = first; i < std::min(count, first + kPanel); ++i) {
        const int t = chosen_[i];
        loss += cross_entropy(&logits_[size_t(i - first) * V], tokens[t + 1], target_weights[t] * scale,
                              &d_logits_[size_t(i) * V]);
      }
    }
    multiply(Rows{d_logits_.data(), V}, packed_->backward[0].data(), rows, d, V,
             [to = d_normed_.data(), d](int m, int n, Vector v) { store(to + ptrdiff_t{m} * d + n, v); });
    weight_gradient(d_logits_.data(), final_.data(), 0, rows, left_logits_.data());
    std::fill(dx_.begin(), dx_.end(), 0.f);
    for (int i = 0; i < count; ++i) {
      const size_t at = size_t(chosen_[i]) * d;
      norm_gradient(&x_[at], weights_[last], moments_[i], &d_normed_[size_t(i) * d], d, &dx_[at], gradients_[last]);
    }
    return loss;
  }

  double cross_entropy(float* logits, int target, float weight, Bf16* gradient) const {
    Vector top = load(logits), total = splat(0.f);
    for (int i = 0; i < s_.vocabulary; i += kLanes) top = _mm512_max_ps(top, load(logits + i));
    const float most = _mm512_reduce_max_ps(top), right = logits[target];
    for (int i = 0; i < s_.vocabulary; i += kLanes) {
      const Vector e = exp(load(logits + i) - splat(most));
      store(logits + i, e);
      total = total + e;
    }
    const float mass = sum(total);
    logits[target] -= mass;
    for (int i = 0; i < s_.vocabulary; i += kLanes) store(gradient + i, load(logits + i) * splat(weight / mass));
    return weight * (double(most) + std::log(double(mass)) - right);
  }

  void backward(int l) {
    Layer& layer = layers_[l];
    const int d = s_.d, hidden = s_.hidden;
    const auto into = [d](float* to) { return [=](int m, int n, Vector v) { store(to + ptrdiff_t{m} * d + n, v); }; };
    round_dx();
    project_gradient(rounded_.data(), layer.active.data(), place(l, kDown),
                     [to = wide_.data(), slope = layer.slope.data(), hidden](int m, int n, Vector v) {
                       store(to + ptrdiff_t{m} * hidden + n, v * load(slope + ptrdiff_t{m} * hidden + n));
                     });
    project_gradient(wide_.data(), layer.normed2.data(), place(l, kUp), into(d_normed_.data()));
    norm_gradients(layer.middle.data(), layer.moments2.data(), place(l, kNorm2));
    round_dx();
    project_gradient(rounded_.data(), layer.attended.data(), place(l, kOut), into(d_normed_.data()));
    const float* softmax = layer.softmax.get();
    for (const Span& span : documents_) {
      attention_.backward(&layer.qkv[size_t(span.first) * 3 * d], softmax, &d_normed_[size_t(span.first) * d],
                          span.count, &wide_[size_t(span.first) * 3 * d]);
      softmax += attention_.room(span.count);
    }
    project_gradient(wide_.data(), layer.normed.data(), place(l, kQkv), into(d_normed_.data()));
    norm_gradients(layer.x.data(), layer.moments.data(), place(l, kNorm1));
  }

  void round_dx() {
    for (size_t i = 0; i < size_t(T_) * s_.d; i += kLanes) store(&rounded_[i], load(&dx_[i]));
  }

  void norm_gradients(const float* x, const Moments* moments, int p) {
    for (int t = 0; t < T_; ++t) {
      const size_t at = size_t(t) * s_.d;
      norm_gradient(x + at, weights_[p], moments[t], &d_normed_[at], s_.d, &dx_[at], gradients_[p]);
    }
  }

  Shape s_;
  Heads heads_;
  Attention attention_;
  std::vector<Layer> layers_;
  std::vector<float> x_, dx_, d_normed_, logits_;
  std::vector<Bf16> wide_, rounded_, left_, right_, final_, d_logits_, left_logits_;
  std::vector<Moments> moments_;
  std::vector<Span> documents_;
  std::vector<int> chosen_;
  const float* const* weights_ = nullptr;
  float* const* gradients_ = nullptr;
  const PackedWeights* packed_ = nullptr;
  int T_ = 0;
};

}  // namespace training
