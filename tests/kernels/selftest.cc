// The kernels of one instruction set against plain loops in double, without XLA and Python: for machines, or emulators,
// that have only a compiler. Build with -DMPT_ISA=portable -DMPT_CPU_FEATURES= and the kernels' flags; exit status 0 is
// success.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "linear.h"
#include "logprobs.h"
#include "paged_attention.h"
#include "sampling.h"

namespace mpt {
namespace MPT_ISA {
namespace {

int failures = 0;

void expect(bool ok, const char* what, double figure) {
  std::printf("%s %-58s %.2e\n", ok ? "ok  " : "FAIL", what, figure);
  failures += !ok;
}

class Threads : public Pool {
 public:
  explicit Threads(int count) : count_(count) {}
  ~Threads() override { join(); }
  int threads() const override { return count_; }
  void schedule(void (*task)(void*), void* data) override { running_.emplace_back(task, data); }
  void join() {
    for (std::thread& t : running_) t.join();
    running_.clear();
  }

 private:
  int count_;
  std::vector<std::thread> running_;
};

std::mt19937 generator(7);

std::vector<float> normal(int64_t count) {
  std::normal_distribution<float> d;
  std::vector<float> x(count);
  for (float& v : x) v = d(generator);
  return x;
}

uint16_t rounded(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// --- linear ---------------------------------------------------------------------------------------------------------

// A packed weight and, in double, what it stands for.
struct PackedWeight {
  std::vector<uint8_t> bytes;
  std::vector<float> row_scale;
  std::vector<uint16_t> group_scale;
  std::vector<double> w;  // [N, K]
};

PackedWeight packed(WeightFormat format, int64_t N, int64_t K, int64_t group) {
  PackedWeight p;
  p.w.resize(N * K);
  const int64_t panels = (N + 31) / 32;
  const int inputs = format == WeightFormat::kFloat32 ? 1 : format == WeightFormat::kBfloat16 ? 2 : 4;
  const int64_t steps = (K + inputs - 1) / inputs, step_bytes = format == WeightFormat::kInt4 ? 64 : 128;
  const uint8_t padding = format == WeightFormat::kInt8 ? 128 : format == WeightFormat::kInt4 ? 0x88 : 0;
  p.bytes.assign(panels * steps * step_bytes, padding);
  p.row_scale.assign(N, 0.01f);
  p.group_scale.assign(panels * 32 * (group ? (K + group - 1) / group : 0), 0x3800);  // 0.5
  for (int64_t n = 0; n < N; ++n) {
    const std::vector<float> row = normal(K);
    for (int64_t k = 0; k < K; ++k) {
      uint8_t* step = p.bytes.data() + (n / 32 * steps + k / inputs) * step_bytes;
      const int64_t lane = n % 32, within = k % inputs;
      double& w = p.w[n * K + k];
      if (format == WeightFormat::kFloat32) {
        std::memcpy(step + lane * 4, &row[k], 4);
        w = row[k];
      } else if (format == WeightFormat::kBfloat16) {
        const uint16_t h = rounded(row[k]);
        std::memcpy(step + lane * 4 + within * 2, &h, 2);
        w = from_bf16(h);
      } else if (format == WeightFormat::kInt8) {
        const int q = static_cast<int>(std::lrint(std::max(-127.f, std::min(127.f, row[k] * 40))));
        step[lane * 4 + within] = static_cast<uint8_t>(q + 128);
        w = q * 0.01;
      } else {
        const int q = static_cast<int>(std::lrint(std::max(-7.f, std::min(7.f, row[k] * 3))));
        uint8_t& byte = step[lane % 16 * 4 + within];
        byte = lane < 16 ? (byte & 0xf0) | (q + 8) : (byte & 0x0f) | ((q + 8) << 4);
        w = q * 0.01 * 0.5;
      }
    }
  }
  return p;
}

void check_linear(const char* name, WeightFormat format, int64_t M, int64_t N, int64_t K, double tolerance) {
  const int64_t group = format == WeightFormat::kInt4 ? 64 : 0;
  const PackedWeight p = packed(format, N, K, group);
  const std::vector<float> x = normal(M * K), bias = normal(N);
  std::vector<float> y(M * N), row(N);
  LinearArgs a = {};
  a.x = x.data(), a.M = M, a.K = K, a.N = N, a.format = format, a.weight = p.bytes.data(), a.y = y.data();
  a.row_scale = p.row_scale.data(), a.group_scale = p.group_scale.data(), a.group = group;
  a.bias = {bias.data(), DType::kFloat32};
  const auto run = [&](const LinearArgs& args, Pool& pool) {
    switch (format) {
      case WeightFormat::kFloat32: return Linear<Float32Weights>::run(args, pool);
      case WeightFormat::kBfloat16: return Linear<Bfloat16Weights>::run(args, pool);
      case WeightFormat::kInt8: return Linear<Int8Weights>::run(args, pool);
      case WeightFormat::kInt4: return Linear<Int4Weights>::run(args, pool);
    }
  };
  Threads many(3), one(1);
  run(a, many);
  many.join();
  double worst = 0;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double exact = bias[n], size = 1e-9;
      for (int64_t k = 0; k < K; ++k) {
        const double in = format == WeightFormat::kBfloat16 ? from_bf16(rounded(x[m * K + k])) : x[m * K + k];
        exact += in * p.w[n * K + k];
        size += std::abs(in * p.w[n * K + k]);
      }
      worst = std::max(worst, std::abs(y[m * N + n] - exact) / size);
    }
  }
  expect(worst < tolerance, name, worst);
  a.x += (M - 1) * K, a.M = 1, a.y = row.data();
  run(a, one);
  expect(std::memcmp(row.data(), y.data() + (M - 1) * N, N * 4) == 0, "  its last row alone, the same bits", 0);
}

// --- attention ------------------------------------------------------------------------------------------------------

struct Case {
  const char* name;
  int64_t H, Hkv, hd, block;
  DType dtype;
  bool slopes;
  float softcap;
  int64_t window;
};

// Rows of a ragged batch with what it takes to attend them; unused slots hold NaN.
struct Batch {
  Batch(const Case& c, const std::vector<int>& lengths, const std::vector<int>& contexts) : c(c) {
    const int64_t R = static_cast<int64_t>(lengths.size());
    const int64_t size = c.dtype == DType::kFloat32 ? 4 : c.dtype == DType::kBfloat16 ? 2 : 1;
    int64_t N = 2, W = 1;
    for (int n : contexts) N += (n + c.block - 1) / c.block, W = std::max<int64_t>(W, (n + c.block - 1) / c.block);
    std::vector<int32_t> ids(N);
    for (int64_t i = 0; i < N; ++i) ids[i] = static_cast<int32_t>(N - 1 - i);
    tables.assign(R * W, -1), starts.resize(R), queries.assign(lengths.begin(), lengths.end());
    length.assign(contexts.begin(), contexts.end());
    const int64_t values = N * c.Hkv * c.block * c.hd;
    k.assign(values * size, 0xff), v.assign(values * size, 0xff);
    for (auto* numbers : {&norms, &k_scales, &v_scales}) {
      numbers->assign(values / c.hd, std::numeric_limits<float>::quiet_NaN());
    }
    int64_t T = 0, used = 0;
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t w = 0; w * c.block < contexts[r]; ++w) tables[r * W + w] = ids[used++];
      starts[r] = static_cast<int32_t>(T);
      keys.push_back(normal(contexts[r] * c.Hkv * c.hd)), vals.push_back(normal(contexts[r] * c.Hkv * c.hd));
      for (int p = 0; p < contexts[r] - lengths[r]; ++p) put(r, p, W);
      T += lengths[r];
    }
    qkv = normal((T + 2) * (c.H + 2 * c.Hkv) * c.hd);  // two tokens of padding
    slots.assign(T + 2, static_cast<int32_t>(N * c.block));
    for (int64_t r = 0; r < R; ++r) {
      for (int i = 0; i < lengths[r]; ++i) {
        const int p = contexts[r] - lengths[r] + i;
        const int64_t t = starts[r] + i;
        slots[t] = static_cast<int32_t>(tables[r * W + p / c.block] * c.block + p % c.block);
        float* kv = qkv.data() + (t * (c.H + 2 * c.Hkv) + c.H) * c.hd;
        std::copy_n(keys[r].data() + p * c.Hkv * c.hd, c.Hkv * c.hd, kv);
        std::copy_n(vals[r].data() + p * c.Hkv * c.hd, c.Hkv * c.hd, kv + c.Hkv * c.hd);
      }
    }
    a = {};
    a.T = T + 2, a.H = c.H, a.Hkv = c.Hkv, a.hd = c.hd, a.cache_dtype = c.dtype, a.N = N, a.block = c.block;
    a.R = R, a.W = W, a.scale = 1 / std::sqrt(static_cast<float>(c.hd)), a.softcap = c.softcap, a.window = c.window;
    for (int64_t h = 0; h < c.H; ++h) slopes.push_back(std::exp2(-0.5f * static_cast<float>(h + 1)));
    out.assign(a.T * c.H * c.hd, 1.f);
  }

  void put(int64_t r, int p, int64_t W) {
    for (int64_t h = 0; h < c.Hkv; ++h) {
      const int64_t to = (tables[r * W + p / c.block] * c.Hkv + h) * c.block + p % c.block;
      const int64_t from = (p * c.Hkv + h) * c.hd;
      double squares = 0;
      k_scales[to] = scale(keys[r], from), v_scales[to] = scale(vals[r], from);
      for (int64_t d = 0; d < c.hd; ++d) {
        set(k, to * c.hd + d, keys[r][from + d], k_scales[to]), set(v, to * c.hd + d, vals[r][from + d], v_scales[to]);
        squares += std::pow(cached(keys[r], from, d), 2);
      }
      norms[to] = length_bound(static_cast<float>(squares));
    }
  }

  void set(std::vector<uint8_t>& pool, int64_t i, float x, float scale) const {
    const uint16_t h = rounded(x);
    if (c.dtype == DType::kFloat32) {
      std::memcpy(pool.data() + 4 * i, &x, 4);
    } else if (c.dtype == DType::kBfloat16) {
      std::memcpy(pool.data() + 2 * i, &h, 2);
    } else {
      pool[i] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(x / scale)));
    }
  }

  // What integers of an int8 pool are multiplied with, for the vector that begins at `from`.
  float scale(const std::vector<float>& x, int64_t from) const {
    float most = 0;
    for (int64_t d = 0; d < c.hd; ++d) most = std::max(most, std::abs(x[from + d]));
    return most * (1.f / 127);
  }

  void run(Pool& pool) {
    a.qkv = qkv.data(), a.k_pool = k.data(), a.v_pool = v.data(), a.slots = slots.data(), a.out = out.data();
    a.block_tables = tables.data(), a.query_start = starts.data(), a.query_len = queries.data();
    a.context_len = length.data(), a.slopes = c.slopes ? slopes.data() : nullptr;
    a.key_norms = norms.data(), a.key_scales = k_scales.data(), a.value_scales = v_scales.data();
    a.alibi_horizon = true, a.counts = counts.get();
    paged_attention(a, pool);
  }

  // Element d of the vector that begins at `from`, as a cache holds it.
  double cached(const std::vector<float>& x, int64_t from, int64_t d) const {
    if (c.dtype == DType::kFloat32) return x[from + d];
    if (c.dtype == DType::kBfloat16) return from_bf16(rounded(x[from + d]));
    return std::nearbyint(x[from + d] / scale(x, from)) * scale(x, from);
  }

  // What the query of row r at position p, head h, is to get.
  std::vector<double> exact(int64_t r, int p, int64_t h) const {
    const float* q = qkv.data() + ((starts[r] + p - (length[r] - queries[r])) * (c.H + 2 * c.Hkv) + h) * c.hd;
    const int64_t kv = h / (c.H / c.Hkv);
    std::vector<double> result(c.hd, 0.0);
    double total = 0;
    for (int j = 0; j <= p; ++j) {
      if (c.window >= 0 && p - j > c.window) continue;
      double s = 0;
      const int64_t at = (j * c.Hkv + kv) * c.hd;
      for (int64_t d = 0; d < c.hd; ++d) s += q[d] * cached(keys[r], at, d);
      s *= a.scale;
      if (c.softcap > 0) s = c.softcap * std::tanh(s / c.softcap);
      if (c.slopes) s -= slopes[h] * (p - j);
      total += std::exp(s);
      for (int64_t d = 0; d < c.hd; ++d) result[d] += std::exp(s) * cached(vals[r], at, d);
    }
    for (double& x : result) x /= total;
    return result;
  }

  Case c;
  AttentionArgs a;
  std::vector<uint8_t> k, v;
  std::vector<std::vector<float>> keys, vals;  // of each row [context, Hkv, hd]
  std::vector<float> qkv, slopes, out, norms, k_scales, v_scales;
  std::shared_ptr<KeyCounts> counts = std::make_shared<KeyCounts>();
  std::vector<int32_t> slots, tables, starts, queries, length;
};

void check_attention(const Case& c) {
  const Batch fresh(c, {1, 1, 70, 0, 9}, {1, 300, 200, 0, 140});
  Batch batch = fresh, alone = fresh;
  Threads many(4), one(1);
  batch.run(many);
  many.join();
  double worst = 0;
  for (int64_t r = 0; r < batch.a.R; ++r) {
    for (int p = batch.length[r] - batch.queries[r]; p < batch.length[r]; ++p) {
      const int64_t t = batch.starts[r] + p - (batch.length[r] - batch.queries[r]);
      for (int64_t h = 0; h < c.H; ++h) {
        const std::vector<double> exact = batch.exact(r, p, h);
        for (int64_t d = 0; d < c.hd; ++d) {
          const double error = std::abs(batch.out[(t * c.H + h) * c.hd + d] - exact[d]);
          worst = error <= worst ? worst : error;  // a NaN stays
        }
      }
    }
  }
  expect(worst < 2e-5, c.name, worst);
  const double left_out = static_cast<double>(batch.counts->left_out) / static_cast<double>(batch.counts->met);
  expect((left_out > 0) == (c.slopes && c.window < 0 && c.H > 1), "  keys beyond the horizon left out, of all",
         left_out);
  double padding = 0;
  for (int64_t i = (batch.a.T - 2) * c.H * c.hd; i < batch.a.T * c.H * c.hd; ++i) padding += std::abs(batch.out[i]);
  expect(padding == 0, "  zeros for padding", padding);
  // The same tokens one at a time, each as a decode row.
  bool same = true;
  const std::vector<float> qkv = alone.qkv;
  const std::vector<int32_t> slots = alone.slots;
  const int64_t token = (c.H + 2 * c.Hkv) * c.hd;
  for (int64_t r = 0; r < fresh.a.R; ++r) {
    for (int i = 0; i < fresh.queries[r]; ++i) {
      const int64_t t = fresh.starts[r] + i;
      Batch& b = alone;
      b.a.T = 1, b.qkv.assign(qkv.begin() + t * token, qkv.begin() + (t + 1) * token), b.slots = {slots[t]};
      b.starts.assign(b.a.R, 0), b.queries.assign(b.a.R, 0), b.queries[r] = 1;
      b.length = fresh.length, b.length[r] = fresh.length[r] - fresh.queries[r] + i + 1;
      b.run(one);
      same &= std::memcmp(b.out.data(), batch.out.data() + t * c.H * c.hd, c.H * c.hd * 4) == 0;
    }
  }
  expect(same, "  token by token, the same bits", 0);
}

// --- sampling -------------------------------------------------------------------------------------------------------

// Rows that ask for different things, all from one slot.
struct Rows {
  int64_t S, V, limit;
  std::vector<float> logits, bias, temperature, top_p, min_p, repetition, presence, frequency, uniform;
  std::vector<uint32_t> masks;
  std::vector<int32_t> counts, slot, top_k, ids;
  std::unique_ptr<bool[]> biased, masked;

  Rows(int64_t S, int64_t V)
      : S(S), V(V), limit(V - 7), logits(normal(S * V)), bias(normal(V)), biased(new bool[S]), masked(new bool[S]) {
    auto number = [](float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); };
    auto some = [&](float value, float otherwise) { return generator() % 2 ? value : otherwise; };
    for (float& x : logits) x *= 3;
    for (int64_t i = 0; i < V; ++i)
      counts.push_back((generator() % 5 == 0) << 30 | (generator() % 5 ? 0 : generator() % 4));
    for (int64_t i = 0; i < S * ((V + 31) / 32); ++i) masks.push_back(generator());
    for (int64_t s = 0; s < S; ++s) {
      temperature.push_back(s % 8 ? number(0.3f, 2) : 0), uniform.push_back(number(0, 0.9999f));
      top_p.push_back(some(number(0.2f, 0.99f), 1)), min_p.push_back(some(number(0, 0.1f), 0));
      top_k.push_back(generator() % 2 * (1 + generator() % V)), slot.push_back(0);
      repetition.push_back(some(1.5f, 1)), presence.push_back(some(0.5f, 0)), frequency.push_back(some(-0.3f, 0));
      biased[s] = generator() % 2, masked[s] = generator() % 2;
    }
    ids.assign(S, -1);
  }

  SampleArgs args() {
    SampleArgs a = {};
    a.logits = logits.data(), a.S = S, a.V = V, a.limit = limit, a.masks = masks.data(), a.counts = counts.data();
    a.bias = bias.data(), a.slots = 1, a.slot = slot.data(), a.temperature = temperature.data();
    a.top_k = top_k.data(), a.top_p = top_p.data(), a.min_p = min_p.data(), a.repetition = repetition.data();
    a.presence = presence.data(), a.frequency = frequency.data(), a.biased = biased.get(), a.masked = masked.get();
    a.uniform = uniform.data(), a.ids = ids.data();
    return a;
  }

  std::vector<double> changed(int64_t s) const {
    std::vector<double> x(logits.begin() + s * V, logits.begin() + s * V + limit);
    for (int64_t i = 0; i < limit; ++i) {
      if (masked[s] && !(masks[s * ((V + 31) / 32) + i / 32] >> i % 32 & 1)) x[i] = -INFINITY;
      if (biased[s]) x[i] += bias[i];
      if (counts[i]) x[i] = x[i] > 0 ? x[i] / repetition[s] : x[i] * repetition[s];
      const int generated = counts[i] & ((1 << 30) - 1);
      x[i] -= frequency[s] * double(generated) + (generated ? presence[s] : 0);
    }
    return x;
  }

  // How far the draw is from the chosen id's part of the running sum; 0 inside.
  double miss(int64_t s) const {
    const std::vector<double> x = changed(s);
    const double top = *std::max_element(x.begin(), x.end());
    if (temperature[s] == 0) return top - x[ids[s]];
    std::vector<double> weight(limit), sorted;
    for (int64_t i = 0; i < limit; ++i) weight[i] = std::exp((x[i] - top) / temperature[s]);
    auto drop_below = [&](double least) {
      for (double& w : weight) w = w < least ? 0 : w;
      sorted = weight;
      std::sort(sorted.rbegin(), sorted.rend());
    };
    drop_below(min_p[s]);
    if (top_k[s] > 0 && top_k[s] < limit) drop_below(sorted[top_k[s] - 1]);
    double rest = top_p[s] * std::accumulate(sorted.begin(), sorted.end(), 0.);
    size_t last = 0;
    while (last + 1 < sorted.size() && (rest -= sorted[last]) > 0) ++last;
    drop_below(sorted[last]);
    const double total = std::accumulate(weight.begin(), weight.end(), 0.);
    const double before = std::accumulate(weight.begin(), weight.begin() + ids[s], 0.) / total;
    return std::max({before - uniform[s], uniform[s] - before - weight[ids[s]] / total, 0.});
  }
};

void check_sampling(int64_t V) {
  Rows rows(64, V);
  Threads one(1), many(3);
  sample(rows.args(), many);
  many.join();
  double worst = 0;
  for (int64_t s = 0; s < rows.S; ++s) worst = std::max(worst, rows.miss(s));
  expect(worst < 1e-5, "sampling", worst);
  const std::vector<int32_t> ids = rows.ids;
  sample(rows.args(), one);
  expect(ids == rows.ids, "  on one thread, the same ids", 0);
}

void check_logprobs(int64_t V) {
  constexpr int64_t S = 5, most = 20;
  std::vector<float> logits = normal(S * V), logprob(S), top_logprobs(S * most);
  for (int64_t i = 0; i < V; ++i) logits[i] = std::round(logits[i]);  // many ties
  std::vector<int32_t> ids, num_logprobs(S, most), rank(S), top_ids(S * most);
  for (int64_t s = 0; s < S; ++s) ids.push_back(generator() % V);
  const LogprobsArgs a = {logits.data(),
                          S,
                          V,
                          V - 7,
                          most,
                          ids.data(),
                          num_logprobs.data(),
                          logprob.data(),
                          rank.data(),
                          top_ids.data(),
                          top_logprobs.data()};
  Threads one(1);
  log_probabilities(a, one);
  double worst = 0;
  bool right = true;
  for (int64_t s = 0; s < S; ++s) {
    const float* x = logits.data() + s * V;
    double total = 0;
    for (int64_t i = 0; i < V; ++i) total += std::exp(double(x[i]));
    worst = std::max(worst, std::abs(logprob[s] - (x[ids[s]] - std::log(total))));
    right &= rank[s] == 1 + std::count_if(x, x + V, [&](float other) { return other > x[ids[s]]; });
    std::vector<int32_t> best(a.limit);
    std::iota(best.begin(), best.end(), 0);
    std::stable_sort(best.begin(), best.end(), [&](int32_t i, int32_t j) { return x[i] > x[j]; });
    for (int64_t j = 0; j < most; ++j) {
      right &= top_ids[s * most + j] == best[j];
      worst = std::max(worst, std::abs(top_logprobs[s * most + j] - (x[best[j]] - std::log(total))));
    }
  }
  expect(worst < 2e-6, "log probabilities", worst);
  expect(right, "  ranks and the most likely ids", 0);
}

int run() {
  for (int64_t M : {1, 5, 29}) {
    check_linear("linear float32", WeightFormat::kFloat32, M, 70, 200, 1e-6);
    check_linear("linear bfloat16", WeightFormat::kBfloat16, M, 70, 202, 1e-6);
    check_linear("linear int8", WeightFormat::kInt8, M, 70, 300, 4e-3);
    check_linear("linear int4", WeightFormat::kInt4, M, 70, 256, 4e-3);
  }
  check_linear("linear bfloat16, in blocks", WeightFormat::kBfloat16, 29, 40, 4400, 1e-6);
  check_linear("linear int8, in blocks", WeightFormat::kInt8, 29, 40, 4400, 4e-3);
  check_linear("linear int4, in blocks", WeightFormat::kInt4, 29, 40, 4416, 4e-3);
  const DType f32 = DType::kFloat32, bf16 = DType::kBfloat16, int8 = DType::kInt8;
  check_attention({"attention 2 heads of 64", 2, 2, 64, 32, f32, true, 0, -1});
  check_attention({"attention bfloat16", 3, 3, 80, 16, bf16, true, 0, -1});
  check_attention({"attention 8 heads on 2, window", 8, 2, 32, 24, bf16, false, 0, 50});
  check_attention({"attention odd head, soft cap, window", 5, 1, 37, 7, f32, true, 5, 3});
  check_attention({"attention 6 heads on 2, blocks of 1", 6, 2, 48, 1, bf16, false, 20, 130});
  for (int64_t V : {33, 1000, 5001}) check_sampling(V), check_logprobs(V);
  check_attention({"attention int8", 4, 2, 64, 24, int8, true, 0, -1});
  std::printf("%s: %d failures\n", failures ? "FAILED" : "passed", failures);
  return failures != 0;
}

}  // namespace
}  // namespace MPT_ISA
}  // namespace mpt

int main() { return mpt::MPT_ISA::run(); }
