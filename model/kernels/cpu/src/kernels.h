// The kernels' arguments: plain records, without XLA and without Python. Arrays are dense and row-major.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace mpt {

// How numbers lie in memory.
enum class DType : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2 };

// A vector of one number per feature, or nothing.
struct Vector {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
};

// A norm over each row: LayerNorm (population variance) or RMSNorm. `kind` kNone leaves the row as it is.
struct Norm {
  enum Kind : int32_t { kNone = 0, kLayer = 1, kRms = 2 };
  Kind kind = kNone;
  float eps = 0;
  Vector weight;  // [K]
  Vector bias;    // [K] or nothing
};

enum class WeightFormat : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kInt4 = 3 };

enum class Activation : int32_t { kNone = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3, kRelu = 4, kQuickGelu = 5 };

enum class Combine : int32_t { kNone = 0, kAdd = 1, kMultiply = 2 };

constexpr int64_t kPanel = 32;            // output features that packed weights keep together
constexpr int kRowTile = 12;              // rows of inputs that fill the registers of a product, in one pass or two
constexpr int64_t kInt8InputGroup = 256;  // inputs of a row that share a scale where weights are int8

// y = combine(activation(norm(x) W^T + bias), other), row by row.
//
// W [N, K] is packed: panels of 32 features, then steps along K, then features; four bytes each, all zero weights where
// N or K does not fill them. float32: [N/32, K, 32]; bfloat16: [N/32, K/2, 32, 2]; int8, as w + 128: [N/32, K/4, 32,
// 4]; int4, as w + 8: [N/32, K/4, 16, 4] bytes, features 0 to 15 of a panel in the low nibbles, 16 to 31 in the high
// ones. Quantised weights have a scale per feature; int4 also one per `group` inputs, relative to it: float16 [N/32,
// K/group, 32].
struct LinearArgs {
  const float* x;                 // [M, K]
  const int32_t* rows = nullptr;  // [M] of x, where not its first M
  int64_t M, K, N;
  Norm norm;
  WeightFormat format;
  const void* weight;
  const float* row_scale = nullptr;       // [N], quantised weights
  const uint16_t* group_scale = nullptr;  // int4
  int64_t group = 0;                      // int4: inputs that share a scale, a multiple of 4
  Vector bias;                            // [N] or nothing
  float clip = 0;                         // the largest magnitude of a result; 0 for any
  Activation activation = Activation::kNone;
  Combine combine = Combine::kNone;
  const float* other = nullptr;  // [M, N]; may be y itself
  float* y;                      // [M, N]
};

struct NormArgs {
  const float* x;  // [M, K]
  int64_t M, K;
  Norm norm;
  float* y;  // [M, K]
};

// Rotary position embedding of heads (rope.h).
struct RopeArgs {
  const float* x;  // [T, heads, hd]
  int64_t T, heads, hd;
  const int32_t* positions;  // [T]
  const float* frequencies;  // [hd / 2], angles per position
  float* y;                  // [T, heads, hd]; may be x
};

// The number of keys of a head that were visible to attention, and of those that it skipped with their values because
// their weight is negligible (horizon.h). Queries of one tile share a key.
struct KeyCounts {
  std::atomic<int64_t> met{0}, left_out{0};
};

// Attention of a ragged step over the paged cache, and the writing of the step's keys and values into it.
struct AttentionArgs {
  const float* qkv;  // [T, (H + 2 Hkv) hd]: of each token its queries, keys and values
  int64_t T, H, Hkv, hd;
  void* k_pool;  // [N, Hkv, block, hd], updated in place
  void* v_pool;
  DType cache_dtype;
  float* key_scales = nullptr;  // [N, Hkv, block] of int8 pools: a key is its scale times integers
  float* value_scales = nullptr;
  float* key_norms = nullptr;  // [N, Hkv, block] bounds of the keys' lengths, or null
  bool alibi_horizon = false;  // whether keys that those bounds prove negligible are skipped
  int64_t N, block;
  const int32_t* slots;         // [T] where a token's key and value go; from N * block on: nowhere
  const int32_t* block_tables;  // [R, W]
  int64_t R, W;
  const int32_t* query_start;  // [R]
  const int32_t* query_len;    // [R], 0 for padding
  const int32_t* context_len;  // [R]
  const float* slopes;         // [H] of ALiBi, or null
  float scale;
  float softcap;   // 0 for none
  int64_t window;  // keys before its own that a query sees; negative for all
  float* out;      // [T, H, hd]; zeros where no row has a token
  KeyCounts* counts = nullptr;
};

// One block of a model, and its part of the cache. Linear layers are given by their weights alone.
struct BlockArgs {
  Norm norm_1, norm_2;
  Norm q_norm, k_norm;   // of kind kNone where the model has none
  bool norms_each_head;  // whether those have a head's width, or that of all heads
  LinearArgs wqkv, out_proj, up_proj, down_proj;
  LinearArgs gate_proj;  // without weights where the model has none
  void *k_pool, *v_pool;
  float *key_norms, *key_scales, *value_scales;
};

// Chooses one id per row of logits.
struct SampleArgs {
  const float* logits;    // [S, V]
  int64_t S, V, limit;    // ids below `limit` only
  const uint32_t* masks;  // [S, ceil(V / 32)], bit i of word w allows id 32 w + i
  const int32_t* counts;  // [slots, V], times generated, + 2^30 where the prompt has the id
  const float* bias;      // [slots, V]
  int64_t slots;
  const int32_t* slot;       // [S], clamped
  const float* temperature;  // [S], 0 for the largest logit
  const int32_t* top_k;      // [S], 0 for all
  const float* top_p;        // [S], 1 for all
  const float* min_p;        // [S], 0 for all
  const float* repetition;   // [S], 1 for none
  const float* presence;     // [S], 0 for none
  const float* frequency;    // [S], 0 for none
  const bool* biased;        // [S], whether the bias is added
  const bool* masked;        // [S], whether the mask is applied
  const float* uniform;      // [S], in [0, 1)
  int32_t* ids;              // [S]
};

// Log probabilities of ids and of the most likely ones below `limit`; zeros where not requested.
struct LogprobsArgs {
  const float* logits;  // [S, V]
  int64_t S, V, limit, most;
  const int32_t* ids;           // [S]
  const int32_t* num_logprobs;  // [S], most likely ids to list, up to `most`; negative for nothing
  float* logprob;               // [S]
  int32_t* rank;                // [S]
  int32_t* top_ids;             // [S, most], -1 where there are no more
  float* top_logprobs;          // [S, most]
};

// What follows the head of a step: an id for each row of its logits, with log probabilities. `chosen(context, row)` is
// called when both are known.
struct ChoiceArgs {
  SampleArgs sample;
  LogprobsArgs logprobs;  // of `known`
  int32_t* known;         // [S]: the ids, 0 in place of one that could not be chosen
  void (*chosen)(void* context, int64_t row);
  void* context;
};

// A ragged step of a whole model: all blocks, and the last norm and the head for some tokens.
struct StepArgs {
  std::vector<BlockArgs> blocks;
  AttentionArgs attention;  // without what depends on the block
  Activation activation;
  float clip_qkv;                      // 0 for none
  float* hidden;                       // [T, d]: embeddings, which become hidden states
  const int32_t* positions = nullptr;  // [T]; read where there are frequencies
  const float* frequencies = nullptr;  // [hd / 2] of RoPE, or null
  LinearArgs head;
  void (*embed)(void* context, int64_t token) = nullptr;  // writes a token's embedding to `hidden`, if not there yet
  void* embed_context = nullptr;
  const ChoiceArgs* choice = nullptr;  // of the rows of the head; null for none
};

// Plans steps, one after the other, and owns the memory that they work in.
class StepPlan {
 public:
  virtual ~StepPlan();
  // Returns the phases of a step on up to `threads` threads. They and the arguments live until the next plan is made.
  virtual const std::vector<Phase>& plan(const StepArgs& args, int threads) = 0;
};

// The kernels for one instruction set.
struct KernelTable {
  const char* name;
  bool (*supported)();
  void (*linear)(const LinearArgs&, Pool&);
  void (*norm)(const NormArgs&, Pool&);
  void (*rope)(const RopeArgs&, Pool&);
  void (*attention)(const AttentionArgs&, Pool&);
  StepPlan* (*new_step_plan)();
  void (*sample)(const SampleArgs&, Pool&);
  void (*log_probabilities)(const LogprobsArgs&, Pool&);
};

// The kernels in use: the best that this machine supports, unless `use_kernels` chose others.
const KernelTable& kernels();

// Names of the instruction sets that this build has and this machine supports, best first; `count` of them.
const char* const* supported_kernels(int* count);

// Chooses by name; false where it is not among the supported ones. For tests and measurements.
bool use_kernels(const char* name);

}  // namespace mpt
