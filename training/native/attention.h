// Causal attention with ALiBi inside of one document, in float32, and its gradient.
//
// A document has n tokens of a row; `padded` is n rounded up to the columns of a panel. Buffers hold at least 8 rows
// and 32 columns more than they need, since blocks at the edge are computed whole.
#pragma once

#include <algorithm>
#include <vector>

#include "products.h"

namespace training {

struct Heads {
  int d, count;  // width of the residual stream, number of heads
  float bias_max;
  int width() const { return d / count; }
  float scale() const { return 1.f / std::sqrt(float(width())); }
  // As llm-foundry: of a number of heads that is a power of two.
  float slope(int head) const { return std::exp2(-bias_max * float(head + 1) / float(count)); }
};

inline int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

class Attention {
 public:
  Attention(Heads heads, int longest)
      : heads_(heads),
        padded_(up_to(longest, kPanel) + kPanel),
        turned_(size_t(padded_) * heads.width()),
        gradient_(size_t(padded_) * padded_) {}

  // Room for the weights of a document of n tokens, all heads.
  size_t room(int n) const { return size_t(heads_.count) * up_to(n, kRows) * up_to(n, kPanel); }

  // qkv [n, 3 d] -> out [n, d]; keeps the softmax in `weights`.
  void forward(const float* qkv, int n, float* weights, Bf16* out) {
    const int d = heads_.d, hd = heads_.width(), padded = up_to(n, kPanel);
    for (int h = 0; h < heads_.count; ++h, weights += size_t(up_to(n, kRows)) * padded) {
      const float *q = qkv + h * hd, *k = q + d, *v = k + d;
      turn(k, n);
      for (int i = 0; i < n; i += kRows) {
        float* rows = weights + ptrdiff_t{i} * padded;
        scores(q + ptrdiff_t{i} * 3 * d, 3 * d, i, padded, rows);
        for (int r = i; r < std::min(n, i + kRows); ++r) softmax(rows + ptrdiff_t{r - i} * padded, r, i, h);
        for (int c = 0; c < hd; c += kPanel) {
          multiply_block(rows, padded, 1, v + c, 3 * d, std::min(n, i + kRows), [&](int r, int lane, Vector x) {
            if (i + r < n) store(out + ptrdiff_t{i + r} * d + h * hd + c + lane, x);
          });
        }
      }
    }
  }

  // The gradient of `forward`: d_out [n, d] float32 -> d_qkv [n, 3 d].
  void backward(const float* qkv, const float* weights, const float* d_out, int n, Bf16* d_qkv) {
    const int d = heads_.d, hd = heads_.width(), padded = up_to(n, kPanel);
    for (int h = 0; h < heads_.count; ++h, weights += size_t(up_to(n, kRows)) * padded) {
      const float *q = qkv + h * hd, *k = q + d, *v = k + d, *dy = d_out + h * hd;
      turn(v, n);
      float* ds = gradient_.data();
      for (int i = 0; i < n; i += kRows) {
        scores(dy + ptrdiff_t{i} * d, d, i, padded, ds + ptrdiff_t{i} * padded);
        for (int r = i; r < std::min(n, i + kRows); ++r) {
          softmax_gradient(weights + ptrdiff_t{r} * padded, i, ds + ptrdiff_t{r} * padded);
        }
      }
      Bf16 *dq = d_qkv + h * hd, *dk = dq + d, *dv = dk + d;
      for (int i = 0; i < n; i += kRows) {
        for (int c = 0; c < hd; c += kPanel) {
          const auto into = [&](Bf16* to) {
            return [=](int r, int lane, Vector x) {
              if (i + r < n) store(to + ptrdiff_t{i + r} * 3 * d + c + lane, x);
            };
          };
          const ptrdiff_t corner = ptrdiff_t{i} * padded + i;
          multiply_block(ds + ptrdiff_t{i} * padded, padded, 1, k + c, 3 * d, std::min(n, i + kRows), into(dq));
          multiply_block(ds + corner, 1, padded, q + ptrdiff_t{i} * 3 * d + c, 3 * d, n - i, into(dk));
          multiply_block(weights + corner, 1, padded, dy + ptrdiff_t{i} * d + c, d, n - i, into(dv));
        }
      }
    }
  }

 private:
  // turned_ [hd, padded_] = x [n, hd] transposed, x in rows of 3 d.
  void turn(const float* x, int n) {
    const __m512i rows = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(3 * heads_.d));
    for (int i = 0; i < n; i += kLanes) {
      const __mmask16 valid = n - i >= kLanes ? 0xffff : (1 << (n - i)) - 1;
      for (int c = 0; c < heads_.width(); ++c) {
        const float* from = x + ptrdiff_t{i} * 3 * heads_.d + c;
        store(&turned_[size_t(c) * padded_ + i], _mm512_mask_i32gather_ps(splat(0.f), valid, rows, from, 4));
      }
    }
  }

  // 8 rows of products with the columns of turned_, up to the diagonal.
  void scores(const float* rows, int stride, int first, int padded, float* out) {
    for (int c = 0; c < first + kRows; c += kPanel) {
      multiply_block(rows, stride, 1, &turned_[c], padded_, heads_.width(),
                     [&](int r, int lane, Vector x) { store(out + ptrdiff_t{r} * padded + c + lane, x); });
    }
  }

  // Columns of a row that its block of 8 rows uses.
  static int used(int first) { return up_to(first + kRows, kLanes); }

  void softmax(float* row, int at, int first, int head) const {
    const Vector scale = splat(heads_.scale()), slope = splat(heads_.slope(head));
    const Vector lane = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    Vector top = splat(-3e38f), total = splat(0.f);
    for (int c = 0; c <= at; c += kLanes) {
      const Vector distance = splat(float(at - c)) - lane;
      const __mmask16 seen = _mm512_cmp_ps_mask(distance, splat(0.f), _CMP_GE_OQ);
      const Vector x = _mm512_mask_mov_ps(splat(-3e38f), seen, load(row + c) * scale - slope * distance);
      store(row + c, x);
      top = _mm512_max_ps(top, x);
    }
    const Vector best = splat(_mm512_reduce_max_ps(top));
    for (int c = 0; c <= at; c += kLanes) {
      const Vector x = load(row + c);
      const Vector e = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, splat(-1e38f), _CMP_GT_OQ), exp(x - best));
      store(row + c, e);
      total = total + e;
    }
    const Vector share = splat(1.f / sum(total));
    for (int c = 0; c < used(first); c += kLanes) store(row + c, c <= at ? load(row + c) * share : splat(0.f));
  }

  void softmax_gradient(const float* weights, int first, float* row) const {
    Vector total = splat(0.f);
    for (int c = 0; c < used(first); c += kLanes) total = total + load(weights + c) * load(row + c);
    const Vector mean = splat(sum(total)), scale = splat(heads_.scale());
    for (int c = 0; c < used(first); c += kLanes) {
      store(row + c, load(weights + c) * (load(row + c) - mean) * scale);
    }
  }

  Heads heads_;
  int padded_;
  std::vector<float> turned_, gradient_;
};

}  // namespace training
