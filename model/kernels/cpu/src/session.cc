#include "session.h"

#include <algorithm>
#include <cstring>

#include "helper_pool.h"

namespace mpt {
namespace {

float half_to_float(uint16_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  float value;
  std::memcpy(&value, &magnitude, sizeof value);
  value *= 5.192296858534828e33f;  // 2^112, for the difference of the exponents' offsets
  return half & 0x8000u ? -value : value;
}

float bfloat16_to_float(uint16_t word) {
  const uint32_t bits = static_cast<uint32_t>(word) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Writes row `n` of packed weights: the definition is `model.params.packed_matrix.take_rows`.
void unpack_row(const LinearArgs& w, int64_t n, float* out) {
  const int64_t panel = n / kPanel, feature = n % kPanel;
  const auto* bytes = static_cast<const uint8_t*>(w.weight);
  switch (w.format) {
    case WeightFormat::kFloat32: {
      const auto* from = static_cast<const float*>(w.weight) + panel * w.K * kPanel + feature;
      for (int64_t k = 0; k < w.K; ++k) out[k] = from[k * kPanel];
      return;
    }
    case WeightFormat::kBfloat16: {
      const int64_t steps = (w.K + 1) / 2;
      const auto* from = static_cast<const uint16_t*>(w.weight) + panel * steps * kPanel * 2 + feature * 2;
      for (int64_t k = 0; k < w.K; ++k) out[k] = bfloat16_to_float(from[k / 2 * kPanel * 2 + k % 2]);
      return;
    }
    case WeightFormat::kInt8: {
      const int64_t steps = (w.K + 3) / 4;
      const auto* from = bytes + panel * steps * kPanel * 4 + feature * 4;
      for (int64_t k = 0; k < w.K; ++k) {
        out[k] = static_cast<float>(from[k / 4 * kPanel * 4 + k % 4] - 128) * w.row_scale[n];
      }
      return;
    }
    case WeightFormat::kInt4: {
      const int64_t steps = (w.K + 3) / 4, groups = (w.K + w.group - 1) / w.group;
      const auto* from = bytes + panel * steps * kPanel * 2 + feature % 16 * 4;
      const uint16_t* scales = w.group_scale + panel * groups * kPanel + feature;
      const int shift = feature < 16 ? 0 : 4;
      for (int64_t k = 0; k < w.K; ++k) {
        const float scale = w.row_scale[n] * half_to_float(scales[k / w.group * kPanel]);
        out[k] = static_cast<float>((from[k / 4 * kPanel * 2 + k % 4] >> shift & 15) - 8) * scale;
      }
      return;
    }
  }
}

uint32_t rotated(uint32_t x, int by) { return x << by | x >> (32 - by); }

// The first word of Threefry-2x32 with 20 rounds (Salmon et al. 2011), as JAX computes it.
uint32_t threefry(uint32_t key0, uint32_t key1, uint32_t x0, uint32_t x1) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key0, key1, key0 ^ key1 ^ 0x1bd11bdau};
  x0 += keys[0], x1 += keys[1];
  for (uint32_t round = 0; round < 5; ++round) {
    for (int rotation : kRotations[round % 2]) x0 += x1, x1 = rotated(x1, rotation) ^ x0;
    x0 += keys[(round + 1) % 3], x1 += keys[(round + 2) % 3] + round + 1;
  }
  return x0;
}

enum SamplingField : int64_t {  // rows of `sampling`
  kSlot,
  kWriteSlot,
  kTopK,
  kChoiceIndex,
  kPosition,
  kNumLogprobs,
  kBiased,
  kMasked,
  kSeedHigh,
  kSeedLow,
  kTemperature,
  kTopP,
  kMinP,
  kRepetition,
  kPresence,
  kFrequency,
  kFields,
};

std::vector<float> copied(const float* numbers, int64_t count) {
  return numbers ? std::vector<float>(numbers, numbers + count) : std::vector<float>();
}

}  // namespace

void run_step(const StepArgs& args, Pool& pool) {
  thread_local const KernelTable* table = nullptr;
  thread_local std::unique_ptr<StepPlan> plan;
  if (table != &kernels()) table = &kernels(), plan.reset(table->new_step_plan());
  const std::vector<Phase>& phases = plan->plan(args, pool.threads());
  run_phases(pool, pool.threads(), phases.data(), static_cast<int64_t>(phases.size()));
}

Session::Session(const StepArgs& model, const LinearArgs& embeddings)
    : args_(model),
      embeddings_(embeddings),
      slopes_(copied(model.attention.slopes, model.attention.H)),
      frequencies_(copied(model.frequencies, model.attention.hd / 2)) {
  args_.attention.slopes = slopes_.empty() ? nullptr : slopes_.data();
  args_.frequencies = frequencies_.empty() ? nullptr : frequencies_.data();
  args_.embed = [](void* self, int64_t token) { static_cast<Session*>(self)->embed(token); };
  args_.embed_context = this;
  args_.choice = &choice_;
  choice_.chosen = [](void* self, int64_t row) { static_cast<Session*>(self)->chosen(row); };
  choice_.context = this;
}

Session::~Session() { finish(); }

void Session::start(const StepInputs& inputs, bool yields) {
  finish();
  abandon_.store(false, std::memory_order_relaxed);
  in_ = inputs;
  take_rows();
  take_sampling();
  if (table_ != &kernels()) table_ = &kernels(), plan_.reset(table_->new_step_plan());
  HelperPool& pool = HelperPool::instance();
  const std::vector<Phase>& phases = plan_->plan(args_, pool.threads());
  const std::atomic<bool>* abandon = yields ? &abandon_ : nullptr;
  run_.begin(pool, pool.threads(), phases.data(), static_cast<int64_t>(phases.size()), abandon);
}

bool Session::finish() { return run_.finish(); }

void Session::take_rows() {
  const int64_t T = in_.T, R = in_.R, S = in_.S, K = embeddings_.K, V = embeddings_.N;
  forward_.assign(in_.forward, in_.forward + 1 + 3 * T + (3 + in_.W) * R + S);
  const int32_t* next = forward_.data() + 1;  // behind the number of decode rows, which needs no attention here
  const auto take = [&](int64_t size) { return next += size, next - size; };
  AttentionArgs& a = args_.attention;
  a.T = T, a.R = R, a.W = in_.W;
  tokens_ = take(T), args_.positions = take(T), a.slots = take(T);
  a.query_start = take(R), a.query_len = take(R), a.context_len = take(R), a.block_tables = take(R * in_.W);
  hidden_.resize(std::max<size_t>(hidden_.size(), T * K)), logits_.resize(std::max<size_t>(logits_.size(), S * V));
  args_.hidden = hidden_.data();
  args_.head.x = args_.hidden, args_.head.y = logits_.data(), args_.head.M = S, args_.head.rows = take(S);
}

void Session::take_sampling() {
  const int64_t S = in_.S, V = embeddings_.N;
  sampling_.assign(in_.sampling, in_.sampling + kFields * S);
  const auto integers = [&](SamplingField field) { return sampling_.data() + field * S; };
  const auto floats = [&](SamplingField field) { return reinterpret_cast<const float*>(integers(field)); };
  uniform_.resize(S), ids_.resize(S), known_.resize(S), rank_.resize(S), logprob_.resize(S);
  top_ids_.resize(S * in_.most), top_logprobs_.resize(S * in_.most);
  if (flagged_ < S) flags_.reset(new bool[2 * S]), flagged_ = S;
  bool* biased = flags_.get();
  bool* masked = biased + S;
  for (int64_t s = 0; s < S; ++s) {
    const auto word = [&](SamplingField field) { return static_cast<uint32_t>(integers(field)[s]); };
    const uint32_t bits = threefry(word(kSeedHigh), word(kSeedLow), word(kChoiceIndex), word(kPosition));
    uniform_[s] = static_cast<float>(bits >> 9) * 1.1920928955078125e-07f;  // 2^-23
    biased[s] = word(kBiased), masked[s] = word(kMasked) && in_.masks;
  }
  SampleArgs& sample = choice_.sample;
  sample.logits = logits_.data(), sample.S = S, sample.V = V, sample.limit = in_.limit, sample.masks = in_.masks;
  sample.counts = in_.counts, sample.bias = in_.bias, sample.slots = in_.slots, sample.slot = integers(kSlot);
  sample.temperature = floats(kTemperature), sample.top_k = integers(kTopK), sample.top_p = floats(kTopP);
  sample.min_p = floats(kMinP), sample.repetition = floats(kRepetition), sample.presence = floats(kPresence);
  sample.frequency = floats(kFrequency), sample.biased = biased, sample.masked = masked;
  sample.uniform = uniform_.data(), sample.ids = ids_.data();
  choice_.known = known_.data();
  LogprobsArgs& logprobs = choice_.logprobs;
  logprobs.logits = logits_.data(), logprobs.S = S, logprobs.V = V, logprobs.limit = in_.limit;
  logprobs.most = in_.most, logprobs.ids = known_.data(), logprobs.num_logprobs = integers(kNumLogprobs);
  logprobs.logprob = logprob_.data(), logprobs.rank = rank_.data();
  logprobs.top_ids = top_ids_.data(), logprobs.top_logprobs = top_logprobs_.data();
}

// Writes the embedding of a token; a negative one stands for the last token of slot -1 - token.
void Session::embed(int64_t t) {
  int64_t token = tokens_[t];
  if (token < 0) token = in_.last_tokens[std::clamp<int64_t>(-1 - token, 0, in_.slots - 1)];
  unpack_row(embeddings_, std::clamp<int64_t>(token, 0, embeddings_.N - 1), args_.hidden + t * embeddings_.K);
}

// Takes a row's id into the sampler's state and to the caller.
void Session::chosen(int64_t row) {
  const int64_t slot = sampling_[kWriteSlot * in_.S + row], most = in_.most;
  if (slot >= 0 && slot < in_.slots) {
    in_.last_tokens[slot] = known_[row];
    ++in_.counts[slot * embeddings_.N + known_[row]];
  }
  int32_t* out = in_.sampled + row * (3 + 2 * most);
  out[0] = ids_[row];
  std::memcpy(out + 1, &logprob_[row], sizeof(float));
  out[2] = rank_[row];
  std::copy_n(&top_ids_[row * most], most, out + 3);
  std::memcpy(out + 3 + most, &top_logprobs_[row * most], most * sizeof(float));
}

}  // namespace mpt
