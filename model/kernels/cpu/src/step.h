// A step of a whole model as one list of phases, so that its threads stay together from the first layer to the head.
//
// The phases are those of the kernels that compute the same layer by layer, so the results are equal to the last bit.
#pragma once

#include <memory>

#include "linear.h"
#include "paged_attention.h"

namespace mpt {
namespace MPT_ISA {

inline std::unique_ptr<Work> linear_work(const LinearArgs& a, int threads, Inputs& inputs) {
  switch (a.format) {
    case WeightFormat::kFloat32: return std::make_unique<Linear<Float32Weights>>(a, threads, inputs);
    case WeightFormat::kBfloat16: return std::make_unique<Linear<Bfloat16Weights>>(a, threads, inputs);
    case WeightFormat::kInt8: return std::make_unique<Linear<Int8Weights>>(a, threads, inputs);
    case WeightFormat::kInt4: return std::make_unique<Linear<Int4Weights>>(a, threads, inputs);
  }
  return nullptr;
}

inline std::unique_ptr<Work> attention_work(const AttentionArgs& a, const AttentionSchedule& schedule) {
  switch (a.cache_dtype) {
    case DType::kFloat32: return std::make_unique<PagedAttention<DType::kFloat32>>(a, schedule);
    case DType::kBfloat16: return std::make_unique<PagedAttention<DType::kBfloat16>>(a, schedule);
    case DType::kInt8: return std::make_unique<PagedAttention<DType::kInt8>>(a, schedule);
  }
  return nullptr;
}

// Norms of the queries and of the keys, in place: over all heads together where the norm's vectors are that long, else
// within each head.
class QueryKeyNorms : public Work {
 public:
  QueryKeyNorms(const AttentionArgs& a, const BlockArgs& block, float* qkv) : a_(a), block_(block), qkv_(qkv) {}

  void add_to(Phases& phases) override {
    const auto run = [](void* self, int64_t t) { static_cast<QueryKeyNorms*>(self)->normalise_token(t); };
    phases.push_back({a_.T, run, this});
  }

 private:
  void normalise_token(int64_t t) const {
    float* q = qkv_ + t * (a_.H + 2 * a_.Hkv) * a_.hd;
    normalise_heads(q, a_.H, block_.q_norm);
    normalise_heads(q + a_.H * a_.hd, a_.Hkv, block_.k_norm);
  }

  void normalise_heads(float* x, int64_t heads, const Norm& norm) const {
    const int64_t run = block_.norms_each_head ? a_.hd : heads * a_.hd;
    for (int64_t i = 0; i < heads * a_.hd; i += run) normalise(x + i, x + i, run, norm);
  }

  const AttentionArgs& a_;
  const BlockArgs& block_;
  float* qkv_;
};

class Step {
 public:
  static void run(const StepArgs& args, Pool& pool) {
    Step step(args, pool.threads());
    Phases phases;
    for (const auto& work : step.works_) work->add_to(phases);
    run_phases(pool, pool.threads(), phases.data(), phases.size());
  }

 private:
  Step(const StepArgs& args, int threads)
      : args_(args), T_(args.attention.T), threads_(threads), inputs_(thread_inputs()), schedule_(args.attention) {
    const AttentionArgs& a = args.attention;
    const int64_t width = args.blocks.empty() ? 0 : args.blocks[0].up_proj.N;
    thread_local Scratch scratch;
    float* next = scratch.get<float>(T_ * ((2 * a.H + 2 * a.Hkv) * a.hd + 2 * width));
    const auto take = [&](int64_t size) { return next += T_ * size, next - T_ * size; };
    qkv_ = take((a.H + 2 * a.Hkv) * a.hd), attended_ = take(a.H * a.hd), up_ = take(width), gated_ = take(width);
    for (const BlockArgs& block : args.blocks) add_attention(block), add_ffn(block);
    if (args.head.M) add_linear(args.head);
  }

  void add_attention(const BlockArgs& block) {
    LinearArgs wqkv = inputs_of(block.wqkv, args_.hidden, block.norm_1);
    wqkv.clip = args_.clip_qkv, wqkv.y = qkv_;
    add_linear(wqkv);
    if (block.q_norm.kind != Norm::kNone) {
      works_.push_back(std::make_unique<QueryKeyNorms>(args_.attention, block, qkv_));
    }
    AttentionArgs a = args_.attention;
    a.qkv = qkv_, a.out = attended_, a.k_pool = block.k_pool, a.v_pool = block.v_pool;
    a.key_norms = block.key_norms, a.key_scales = block.key_scales, a.value_scales = block.value_scales;
    works_.push_back(attention_work(a, schedule_));
    add_to_hidden(inputs_of(block.out_proj, attended_, {}));
  }

  void add_ffn(const BlockArgs& block) {
    const bool gated = block.gate_proj.weight;
    LinearArgs up = inputs_of(block.up_proj, args_.hidden, block.norm_2);
    up.y = up_;
    if (!gated) up.activation = args_.activation;
    add_linear(up);
    if (gated) {
      LinearArgs gate = inputs_of(block.gate_proj, args_.hidden, block.norm_2);
      gate.activation = args_.activation, gate.combine = Combine::kMultiply, gate.other = up_, gate.y = gated_;
      add_linear(gate);
    }
    add_to_hidden(inputs_of(block.down_proj, gated ? gated_ : up_, {}));
  }

  LinearArgs inputs_of(LinearArgs linear, const float* x, const Norm& norm) const {
    linear.x = x, linear.M = T_, linear.norm = norm;
    return linear;
  }

  void add_to_hidden(LinearArgs linear) {
    linear.combine = Combine::kAdd, linear.other = linear.y = args_.hidden;
    add_linear(linear);
  }

  void add_linear(const LinearArgs& linear) {
    for_row_parts(linear, [&](const LinearArgs& part) { works_.push_back(linear_work(part, threads_, inputs_)); });
  }

  static Inputs& thread_inputs() {
    thread_local Inputs inputs;
    return inputs;
  }

  const StepArgs& args_;
  const int64_t T_;
  const int threads_;
  Inputs& inputs_;
  const AttentionSchedule schedule_;
  float *qkv_, *attended_, *up_, *gated_;
  std::vector<std::unique_ptr<Work>> works_;
};

inline void step(const StepArgs& a, Pool& pool) { Step::run(a, pool); }

}  // namespace MPT_ISA
}  // namespace mpt
