// The kernels of one instruction set: compiled once for each, selected by MPT_ISA and the compiler's flags.
#include "linear.h"
#include "logprobs.h"
#include "paged_attention.h"
#include "rope.h"
#include "sampling.h"
#include "step.h"

#define MPT_STRING(x) MPT_STRING_(x)
#define MPT_STRING_(x) #x

namespace mpt {
namespace MPT_ISA {
namespace {

bool supported() {
#if defined(__x86_64__)
  return true MPT_CPU_FEATURES;
#else
  return true;
#endif
}

void linear(const LinearArgs& a, Pool& pool) {
  switch (a.format) {
    case WeightFormat::kFloat32: return Linear<Float32Weights>::run(a, pool);
    case WeightFormat::kBfloat16: return Linear<Bfloat16Weights>::run(a, pool);
    case WeightFormat::kInt8: return Linear<Int8Weights>::run(a, pool);
    case WeightFormat::kInt4: return Linear<Int4Weights>::run(a, pool);
  }
}

void norm(const NormArgs& a, Pool& pool) {
  constexpr int64_t kRowsPerChunk = 16;
  auto rows = [&](int64_t chunk) {
    const int64_t end = std::min((chunk + 1) * kRowsPerChunk, a.M);
    for (int64_t m = chunk * kRowsPerChunk; m < end; ++m) normalise(a.x + m * a.K, a.y + m * a.K, a.K, a.norm);
  };
  const int threads = a.M * a.K < 100'000 ? 1 : pool.threads();
  run_phase(pool, threads, phase((a.M + kRowsPerChunk - 1) / kRowsPerChunk, rows));
}

}  // namespace

extern const KernelTable table;
const KernelTable table = {MPT_STRING(MPT_ISA), supported, linear,           norm, rope, paged_attention,
                           new_step_plan,       sample,    log_probabilities};

}  // namespace MPT_ISA
}  // namespace mpt
