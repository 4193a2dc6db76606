// A step of a whole model as one list of phases, so that its threads stay together from the first layer to the head.
//
// The phases are those of the kernels that compute the same layer by layer, so the results are equal to the last bit.
#pragma once

#include <memory>

#include "linear.h"
#include "logprobs.h"
#include "paged_attention.h"
#include "rope.h"
#include "sampling.h"

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

// What models do with queries and keys before attention, in place: norms, over all heads together where the norm's
// vectors are that long, else within each head; then RoPE.
class QueriesAndKeys : public Work {
 public:
  QueriesAndKeys(const StepArgs& step, const BlockArgs& block, float* qkv)
      : step_(step), a_(step.attention), block_(block), qkv_(qkv) {}

  static bool needed(const StepArgs& step, const BlockArgs& block) {
    return block.q_norm.kind != Norm::kNone || step.frequencies;
  }

  void add_to(Phases& phases) override {
    const auto run = [](void* self, int64_t t) { static_cast<QueriesAndKeys*>(self)->change_token(t); };
    phases.push_back({a_.T, run, this});
  }

 private:
  void change_token(int64_t t) const {
    float* q = qkv_ + t * (a_.H + 2 * a_.Hkv) * a_.hd;
    if (block_.q_norm.kind != Norm::kNone) {
      normalise_heads(q, a_.H, block_.q_norm);
      normalise_heads(q + a_.H * a_.hd, a_.Hkv, block_.k_norm);
    }
    if (step_.frequencies) rotate_token(q, q, a_.H + a_.Hkv, a_.hd, step_.positions[t], step_.frequencies);
  }

  void normalise_heads(float* x, int64_t heads, const Norm& norm) const {
    const int64_t run = block_.norms_each_head ? a_.hd : heads * a_.hd;
    for (int64_t i = 0; i < heads * a_.hd; i += run) normalise(x + i, x + i, run, norm);
  }

  const StepArgs& step_;
  const AttentionArgs& a_;
  const BlockArgs& block_;
  float* qkv_;
};

// Ids and log probabilities of the head's rows.
class Choices : public Work {
 public:
  explicit Choices(const ChoiceArgs& a) : a_(a) {}

  void add_to(Phases& phases) override {
    const auto run = [](void* self, int64_t row) { static_cast<Choices*>(self)->choose(row); };
    phases.push_back({a_.sample.S, run, this});
  }

 private:
  void choose(int64_t row) const {
    const int32_t id = RowSampler(a_.sample, row).sample();
    a_.sample.ids[row] = id;
    a_.known[row] = std::max(id, 0);
    RowLogprobs(a_.logprobs, row).write();
    a_.chosen(a_.context, row);
  }

  const ChoiceArgs& a_;
};

class Step : public StepPlan {
 public:
  const std::vector<Phase>& plan(const StepArgs& args, int threads) override {
    args_ = &args, threads_ = threads;
    const AttentionArgs& a = args.attention;
    const int64_t width = args.blocks.empty() ? 0 : args.blocks[0].up_proj.N;
    float* next = scratch_.get<float>(a.T * ((2 * a.H + 2 * a.Hkv) * a.hd + 2 * width));
    const auto take = [&](int64_t size) { return next += a.T * size, next - a.T * size; };
    qkv_ = take((a.H + 2 * a.Hkv) * a.hd), attended_ = take(a.H * a.hd), up_ = take(width), gated_ = take(width);
    works_.clear(), phases_.clear();
    schedule_ = std::make_unique<AttentionSchedule>(a, threads);
    if (args.embed) phases_.push_back({a.T, args.embed, args.embed_context});
    for (const BlockArgs& block : args.blocks) add_attention(block), add_ffn(block);
    if (args.head.M) add_linear(args.head);
    if (args.choice) works_.push_back(std::make_unique<Choices>(*args.choice));
    for (const auto& work : works_) work->add_to(phases_);
    return phases_;
  }

 private:
  void add_attention(const BlockArgs& block) {
    LinearArgs wqkv = inputs_of(block.wqkv, args_->hidden, block.norm_1);
    wqkv.clip = args_->clip_qkv, wqkv.y = qkv_;
    add_linear(wqkv);
    if (QueriesAndKeys::needed(*args_, block)) {
      works_.push_back(std::make_unique<QueriesAndKeys>(*args_, block, qkv_));
    }
    AttentionArgs a = args_->attention;
    a.qkv = qkv_, a.out = attended_, a.k_pool = block.k_pool, a.v_pool = block.v_pool;
    a.key_norms = block.key_norms, a.key_scales = block.key_scales, a.value_scales = block.value_scales;
    works_.push_back(attention_work(a, *schedule_));
    add_to_hidden(inputs_of(block.out_proj, attended_, {}));
  }

  void add_ffn(const BlockArgs& block) {
    const bool gated = block.gate_proj.weight;
    LinearArgs up = inputs_of(block.up_proj, args_->hidden, block.norm_2);
    up.y = up_;
    if (!gated) up.activation = args_->activation;
    add_linear(up);
    if (gated) {
      LinearArgs gate = inputs_of(block.gate_proj, args_->hidden, block.norm_2);
      gate.activation = args_->activation, gate.combine = Combine::kMultiply, gate.other = up_, gate.y = gated_;
      add_linear(gate);
    }
    add_to_hidden(inputs_of(block.down_proj, gated ? gated_ : up_, {}));
  }

  LinearArgs inputs_of(LinearArgs linear, const float* x, const Norm& norm) const {
    linear.x = x, linear.M = args_->attention.T, linear.norm = norm;
    return linear;
  }

  void add_to_hidden(LinearArgs linear) {
    linear.combine = Combine::kAdd, linear.other = linear.y = args_->hidden;
    add_linear(linear);
  }

  void add_linear(const LinearArgs& linear) {
    for_row_parts(linear, [&](const LinearArgs& part) { works_.push_back(linear_work(part, threads_, inputs_)); });
  }

  const StepArgs* args_ = nullptr;
  int threads_ = 1;
  Scratch scratch_;
  Inputs inputs_;
  std::unique_ptr<AttentionSchedule> schedule_;
  float *qkv_ = nullptr, *attended_ = nullptr, *up_ = nullptr, *gated_ = nullptr;
  std::vector<std::unique_ptr<Work>> works_;
  Phases phases_;
};

inline StepPlan* new_step_plan() { return new Step; }

}  // namespace MPT_ISA
}  // namespace mpt
