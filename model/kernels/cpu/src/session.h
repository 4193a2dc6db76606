// Steps of one model without XLA: what a step takes from it, its weights and caches, is known from the session's start.
//
// A step runs on other threads from `start` on; the caller joins them at the latest when it starts the next one. Its
// embedding and its sampling are part of it, so that ids go from step to step without the caller.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "phase_run.h"

namespace mpt {

// A step's rows and how they are sampled; `model.kernels.cpu.session.StepInputs`. Arrays of `forward` and `sampling`
// lie one after the other in the order of their names there.
struct StepInputs {
  int64_t T, R, W, S;
  int64_t slots, limit, most;  // of the sampler's state; ids below `limit`; the most log probabilities of a row
  const int32_t* forward;
  const int32_t* sampling;  // [16, S]
  const uint32_t* masks;    // [S, ceil(V / 32)], or null where no row is masked
  int32_t* last_tokens;     // [slots], the sampler's state, updated in place
  int32_t* counts;          // [slots, V]
  const float* bias;        // [slots, V]
  int32_t* sampled;         // [S, 3 + 2 most]: id, log probability, rank, most likely ids, their log probabilities
};

// Computes a step on the threads of a pool.
void run_step(const StepArgs& args, Pool& pool);

class Session {
 public:
  // The model's weights and caches must live, and stay where they are, as long as the session.
  Session(const StepArgs& model, const LinearArgs& embeddings);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Begins a step, once the one before is done. What `forward` and `sampling` point to is copied, the rest must live
  // until the step is done. yields: whether `abandon` may end it.
  void start(const StepInputs& inputs, bool yields);
  // Returns once the step that was begun last is done, or abandoned: then it has sampled nothing, the sampler's state
  // is as before, and the cache undefined where the step's own tokens are. Returns whether it is done.
  bool finish();
  // Abandons the step in flight, if that yields and has not come to its samples. Any thread.
  void abandon() { abandon_.store(true, std::memory_order_relaxed); }

 private:
  void take_rows();
  void take_sampling();
  void embed(int64_t token);
  void chosen(int64_t row);

  StepArgs args_;
  const LinearArgs embeddings_;
  const std::vector<float> slopes_, frequencies_;
  ChoiceArgs choice_ = {};
  StepInputs in_ = {};
  std::vector<int32_t> forward_, sampling_, ids_, known_, rank_, top_ids_;
  std::vector<float> hidden_, logits_, uniform_, logprob_, top_logprobs_;
  std::vector<uint32_t> no_masks_;
  std::unique_ptr<bool[]> flags_;
  int64_t flagged_ = 0;  // rows that `flags_` has place for
  const int32_t* tokens_ = nullptr;
  const KernelTable* table_ = nullptr;  // that plan_ is of
  std::unique_ptr<StepPlan> plan_;
  std::atomic<bool> abandon_{false};
  PhaseRun run_;
};

}  // namespace mpt
