// The kernels as XLA custom calls: buffers and attributes in, records of kernels.h out. Each handler checks its
// arguments, because a wrong shape would be a read out of bounds.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "kernels.h"
#include "pack.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace mpt {
namespace {

class XlaPool : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool& pool) : pool_(pool), threads_(static_cast<int>(pool.num_threads())) {}
  int threads() const override { return threads_ > 0 ? threads_ : 1; }
  void schedule(void (*task)(void*), void* data) override {
    pool_.Schedule([task, data] { task(data); });
  }

 private:
  ffi::ThreadPool& pool_;
  int threads_;
};

ffi::Error wrong(const std::string& what) { return ffi::Error::InvalidArgument("mpt kernels: " + what); }

int64_t last(const ffi::AnyBuffer& b) { return b.dimensions().size() ? b.dimensions().back() : 1; }
int64_t count(const ffi::AnyBuffer& b) { return static_cast<int64_t>(b.element_count()); }

// Reads the optional arguments one after the other, and remembers the first that does not fit.
class Rest {
 public:
  explicit Rest(ffi::RemainingArgs args) : args_(args) {}

  std::optional<ffi::AnyBuffer> next(const char* name, int64_t size) {
    auto found = args_.get<ffi::AnyBuffer>(index_++);
    if (!found.has_value()) {
      fail(name, " is missing");
      return std::nullopt;
    }
    if (count(found.value()) != size) {
      fail(name, " has " + std::to_string(count(found.value())) + " elements, not " + std::to_string(size));
    }
    return found.value();
  }

  Vector vector(const char* name, int64_t size) {
    const auto b = next(name, size);
    if (!b) return {};
    if (b->element_type() == ffi::F32) return {b->untyped_data(), DType::kFloat32};
    if (b->element_type() == ffi::BF16) return {b->untyped_data(), DType::kBfloat16};
    fail(name, " is neither float32 nor bfloat16");
    return {};
  }

  template <class T>
  const T* typed(const char* name, int64_t size, ffi::DataType type) {
    const auto b = next(name, size);
    if (!b) return nullptr;
    if (b->element_type() != type) fail(name, " has another element type");
    return static_cast<const T*>(b->untyped_data());
  }

  const std::string& error() {
    if (error_.empty() && index_ != args_.size()) error_ = "more arguments than the attributes describe";
    return error_;
  }

 private:
  void fail(const char* name, const std::string& what) {
    if (error_.empty()) error_ = name + what;
  }

  ffi::RemainingArgs args_;
  size_t index_ = 0;
  std::string error_;
};

void take_norm(Rest& rest, Norm& norm, int32_t kind, bool has_bias, float eps, int64_t K) {
  norm.kind = static_cast<Norm::Kind>(kind);
  norm.eps = eps;
  if (kind == Norm::kNone) return;
  norm.weight = rest.vector("norm weight", K);
  if (has_bias) norm.bias = rest.vector("norm bias", K);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ffi::Error check_weight(const LinearArgs& a, const ffi::AnyBuffer& weight) {
  const int64_t features = ceil_div(a.N, kPanel) * kPanel;
  int64_t elements = 0;
  ffi::DataType type = ffi::U8;
  switch (a.format) {
    case WeightFormat::kFloat32: type = ffi::F32, elements = features * a.K; break;
    case WeightFormat::kBfloat16: type = ffi::BF16, elements = features * ceil_div(a.K, 2) * 2; break;
    case WeightFormat::kInt8: elements = features * ceil_div(a.K, 4) * 4; break;
    case WeightFormat::kInt4: elements = features * ceil_div(a.K, 4) * 2; break;
    default: return wrong("no such weight format");
  }
  if (weight.element_type() != type) return wrong("the weight's element type is not its format's");
  if (count(weight) != elements)
    return wrong("the weight has " + std::to_string(count(weight)) + " elements, not " + std::to_string(elements));
  return ffi::Error::Success();
}

ffi::Error linear(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::AnyBuffer weight, ffi::RemainingArgs remaining,
                  ffi::Result<ffi::BufferR2<ffi::F32>> y, int32_t format, int32_t norm, bool norm_bias, float eps,
                  bool bias, int32_t activation, int32_t combine, int64_t group) {
  LinearArgs a = {};
  a.K = last(x);
  a.M = a.K ? count(x) / a.K : 0;
  a.N = y->dimensions()[1];
  if (x.element_type() != ffi::F32 || y->dimensions()[0] != a.M)
    return wrong("x [M, K] and y [M, N] float32 are needed");
  a.x = x.typed_data<float>();
  a.y = y->typed_data();
  a.format = static_cast<WeightFormat>(format);
  a.weight = weight.untyped_data();
  if (ffi::Error error = check_weight(a, weight); !error.success()) return error;
  Rest rest(remaining);
  take_norm(rest, a.norm, norm, norm_bias, eps, a.K);
  if (a.format == WeightFormat::kInt8 || a.format == WeightFormat::kInt4) {
    a.row_scale = rest.typed<float>("row scale", a.N, ffi::F32);
  }
  if (a.format == WeightFormat::kInt4) {
    if (group < 4 || group % 4) return wrong("a group of inputs is a multiple of 4");
    a.group = group;
    a.group_scale =
        rest.typed<uint16_t>("group scale", ceil_div(a.N, kPanel) * kPanel * ceil_div(a.K, group), ffi::F16);
  }
  if (bias) a.bias = rest.vector("bias", a.N);
  a.activation = static_cast<Activation>(activation);
  a.combine = static_cast<Combine>(combine);
  if (a.combine != Combine::kNone) a.other = rest.typed<float>("other", a.M * a.N, ffi::F32);
  if (!rest.error().empty()) return wrong(rest.error());
  if (a.M * a.N == 0) return ffi::Error::Success();
  XlaPool pool(thread_pool);
  kernels().linear(a, pool);
  return ffi::Error::Success();
}

ffi::Error norm(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::RemainingArgs remaining,
                ffi::Result<ffi::AnyBuffer> y, int32_t norm, bool norm_bias, float eps) {
  NormArgs a = {};
  a.K = last(x);
  a.M = a.K ? count(x) / a.K : 0;
  if (x.element_type() != ffi::F32 || y->element_type() != ffi::F32) return wrong("x and y float32 are needed");
  if (static_cast<int64_t>(y->element_count()) != count(x)) return wrong("y is as large as x");
  a.x = x.typed_data<float>();
  a.y = y->typed_data<float>();
  Rest rest(remaining);
  take_norm(rest, a.norm, norm, norm_bias, eps, a.K);
  if (a.norm.kind == Norm::kNone) return wrong("no such norm");
  if (!rest.error().empty()) return wrong(rest.error());
  XlaPool pool(thread_pool);
  if (a.M) kernels().norm(a, pool);
  return ffi::Error::Success();
}

using Integers = ffi::BufferR1<ffi::S32>;

// The numbers that a cache keeps per token and head of keys beside its pools, one array after the other, in place.
class TokenNumbers {
 public:
  TokenNumbers(ffi::RemainingArgs in, ffi::RemainingRets out, int64_t size) : in_(in), out_(out), size_(size) {}

  float* next() {
    auto from = in_.get<ffi::AnyBuffer>(index_);
    auto to = out_.get<ffi::AnyBuffer>(index_++);
    if (!from.has_value() || !to.has_value()) return fail();
    ffi::AnyBuffer buffer = **to;
    const bool fits = buffer.element_type() == ffi::F32 && count(buffer) == size_;
    return fits && buffer.untyped_data() == from->untyped_data() ? buffer.typed_data<float>() : fail();
  }

  bool wrong() const { return wrong_ || index_ != in_.size() || index_ != out_.size(); }

 private:
  float* fail() { return wrong_ = true, nullptr; }

  ffi::RemainingArgs in_;
  ffi::RemainingRets out_;
  int64_t size_;
  size_t index_ = 0;
  bool wrong_ = false;
};

KeyCounts key_counts;

ffi::Error attention(ffi::ThreadPool thread_pool, ffi::BufferR2<ffi::F32> qkv, ffi::AnyBuffer k_in, ffi::AnyBuffer v_in,
                     Integers slots, ffi::BufferR2<ffi::S32> block_tables, Integers query_start, Integers query_len,
                     Integers context_len, ffi::RemainingArgs numbers_in, ffi::Result<ffi::BufferR2<ffi::F32>> out,
                     ffi::Result<ffi::AnyBuffer> k_pool, ffi::Result<ffi::AnyBuffer> v_pool,
                     ffi::RemainingRets numbers_out, ffi::Span<const float> slopes, float scale, float softcap,
                     int64_t window, bool norms, bool alibi_horizon) {
  AttentionArgs a = {};
  const auto pool_shape = k_pool->dimensions();
  const auto v_shape = v_pool->dimensions();
  if (pool_shape.size() != 4 || !std::equal(pool_shape.begin(), pool_shape.end(), v_shape.begin(), v_shape.end()))
    return wrong("pools [N, Hkv, block, hd] are needed");
  a.N = pool_shape[0], a.Hkv = pool_shape[1], a.block = pool_shape[2], a.hd = pool_shape[3];
  const ffi::DataType type = k_pool->element_type();
  const bool whole = type == ffi::S8;
  if (type != v_pool->element_type() || (type != ffi::F32 && type != ffi::BF16 && !whole))
    return wrong("pools are float32, bfloat16 or int8");
  a.cache_dtype = whole ? DType::kInt8 : type == ffi::F32 ? DType::kFloat32 : DType::kBfloat16;
  a.k_pool = k_pool->untyped_data();
  a.v_pool = v_pool->untyped_data();
  if (a.k_pool != k_in.untyped_data() || a.v_pool != v_in.untyped_data()) return wrong("pools are updated in place");
  TokenNumbers numbers(numbers_in, numbers_out, a.N * a.Hkv * a.block);
  if (norms) a.key_norms = numbers.next();
  if (whole) a.key_scales = numbers.next(), a.value_scales = numbers.next();
  if (numbers.wrong()) return wrong("norms and scales [N, Hkv, block] float32 are updated in place");
  a.alibi_horizon = alibi_horizon;
  a.counts = &key_counts;
  a.T = qkv.dimensions()[0];
  a.H = a.hd ? qkv.dimensions()[1] / a.hd - 2 * a.Hkv : 0;
  if (a.H < 1 || a.H % a.Hkv || (a.H + 2 * a.Hkv) * a.hd != qkv.dimensions()[1])
    return wrong("qkv [T, (H + 2 Hkv) hd] is needed");
  if (out->dimensions()[0] != a.T || out->dimensions()[1] != a.H * a.hd) return wrong("out [T, H hd] is needed");
  a.R = block_tables.dimensions()[0], a.W = block_tables.dimensions()[1];
  for (const Integers* rows : {&query_start, &query_len, &context_len}) {
    if (static_cast<int64_t>(rows->element_count()) != a.R) return wrong("there are as many rows as block tables");
  }
  if (static_cast<int64_t>(slots.element_count()) != a.T) return wrong("there are as many slots as tokens");
  if (slopes.size() && static_cast<int64_t>(slopes.size()) != a.H) return wrong("there are as many slopes as heads");
  a.qkv = qkv.typed_data();
  a.slots = slots.typed_data();
  a.block_tables = block_tables.typed_data();
  a.query_start = query_start.typed_data();
  a.query_len = query_len.typed_data();
  a.context_len = context_len.typed_data();
  a.slopes = slopes.size() ? slopes.begin() : nullptr;
  a.scale = scale, a.softcap = softcap, a.window = window;
  a.out = out->typed_data();
  XlaPool pool(thread_pool);
  kernels().attention(a, pool);
  return ffi::Error::Success();
}

using Floats = ffi::BufferR1<ffi::F32>;
using Flags = ffi::BufferR1<ffi::PRED>;

ffi::Error sample(ffi::ThreadPool thread_pool, ffi::BufferR2<ffi::F32> logits, ffi::BufferR2<ffi::U32> masks,
                  ffi::BufferR2<ffi::S32> counts, ffi::BufferR2<ffi::F32> bias, Integers slot, Floats temperature,
                  Integers top_k, Floats top_p, Floats min_p, Floats repetition, Floats presence, Floats frequency,
                  Flags biased, Flags masked, Floats uniform, ffi::Result<Integers> ids, int64_t limit) {
  SampleArgs a = {};
  a.S = logits.dimensions()[0], a.V = logits.dimensions()[1], a.limit = limit, a.slots = counts.dimensions()[0];
  if (limit < 1 || limit > a.V) return wrong("ids to choose from are needed, and no more than there are logits");
  if (masks.dimensions()[0] != a.S || masks.dimensions()[1] != ceil_div(a.V, 32))
    return wrong("masks [S, ceil(V / 32)] are needed");
  if (a.slots < 1 || counts.dimensions()[1] != a.V) return wrong("counts [slots, V] are needed");
  if (bias.dimensions()[0] != a.slots || bias.dimensions()[1] != a.V) return wrong("bias [slots, V] is needed");
  for (const size_t rows :
       {slot.element_count(), temperature.element_count(), top_k.element_count(), top_p.element_count(),
        min_p.element_count(), repetition.element_count(), presence.element_count(), frequency.element_count(),
        biased.element_count(), masked.element_count(), uniform.element_count(), ids->element_count()}) {
    if (static_cast<int64_t>(rows) != a.S) return wrong("every row has its parameters");
  }
  a.logits = logits.typed_data(), a.masks = masks.typed_data();
  a.counts = counts.typed_data(), a.bias = bias.typed_data(), a.slot = slot.typed_data();
  a.temperature = temperature.typed_data(), a.top_k = top_k.typed_data();
  a.top_p = top_p.typed_data(), a.min_p = min_p.typed_data();
  a.repetition = repetition.typed_data(), a.presence = presence.typed_data(), a.frequency = frequency.typed_data();
  a.biased = biased.typed_data(), a.masked = masked.typed_data();
  a.uniform = uniform.typed_data(), a.ids = ids->typed_data();
  XlaPool pool(thread_pool);
  kernels().sample(a, pool);
  return ffi::Error::Success();
}

ffi::Error log_probabilities(ffi::ThreadPool thread_pool, ffi::BufferR2<ffi::F32> logits, Integers ids,
                             Integers num_logprobs, ffi::Result<Floats> logprob, ffi::Result<Integers> rank,
                             ffi::Result<ffi::BufferR2<ffi::S32>> top_ids,
                             ffi::Result<ffi::BufferR2<ffi::F32>> top_logprobs, int64_t limit) {
  LogprobsArgs a = {};
  a.S = logits.dimensions()[0], a.V = logits.dimensions()[1], a.limit = limit, a.most = top_ids->dimensions()[1];
  if (limit < 1 || limit > a.V) return wrong("ids to list are needed, and no more than there are logits");
  for (const size_t rows :
       {ids.element_count(), num_logprobs.element_count(), logprob->element_count(), rank->element_count()}) {
    if (static_cast<int64_t>(rows) != a.S) return wrong("every row has its id and its log probability");
  }
  if (top_ids->dimensions()[0] != a.S || top_logprobs->dimensions()[0] != a.S ||
      top_logprobs->dimensions()[1] != a.most) {
    return wrong("as many top ids as their log probabilities are needed, for every row");
  }
  a.logits = logits.typed_data(), a.ids = ids.typed_data(), a.num_logprobs = num_logprobs.typed_data();
  a.logprob = logprob->typed_data(), a.rank = rank->typed_data();
  a.top_ids = top_ids->typed_data(), a.top_logprobs = top_logprobs->typed_data();
  XlaPool pool(thread_pool);
  kernels().log_probabilities(a, pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace mpt

#define MPT_EXPORT __attribute__((visibility("default")))

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_linear_handler, mpt::linear,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<int32_t>("format")
                                  .Attr<int32_t>("norm")
                                  .Attr<bool>("norm_bias")
                                  .Attr<float>("eps")
                                  .Attr<bool>("bias")
                                  .Attr<int32_t>("activation")
                                  .Attr<int32_t>("combine")
                                  .Attr<int64_t>("group"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_norm_handler, mpt::norm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int32_t>("norm")
                                  .Attr<bool>("norm_bias")
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_attention_handler, mpt::attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<mpt::Integers>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .RemainingArgs()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const float>>("slopes")
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("window")
                                  .Attr<bool>("norms")
                                  .Attr<bool>("alibi_horizon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_sample_handler, mpt::sample,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::U32>>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Floats>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Floats>()
                                  .Arg<mpt::Floats>()
                                  .Arg<mpt::Floats>()
                                  .Arg<mpt::Floats>()
                                  .Arg<mpt::Floats>()
                                  .Arg<mpt::Flags>()
                                  .Arg<mpt::Flags>()
                                  .Arg<mpt::Floats>()
                                  .Ret<mpt::Integers>()
                                  .Attr<int64_t>("limit"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_log_probabilities_handler, mpt::log_probabilities,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .Ret<mpt::Floats>()
                                  .Ret<mpt::Integers>()
                                  .Ret<ffi::BufferR2<ffi::S32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Attr<int64_t>("limit"));

extern "C" {
MPT_EXPORT const char* const* mpt_supported_kernels(int* count) { return mpt::supported_kernels(count); }
MPT_EXPORT const char* mpt_kernels_in_use() { return mpt::kernels().name; }
MPT_EXPORT int mpt_row_tile() { return mpt::kRowTile; }
MPT_EXPORT void mpt_limit_threads(int threads) { mpt::limit_threads(threads); }
MPT_EXPORT bool mpt_use_kernels(const char* name) { return mpt::use_kernels(name); }
MPT_EXPORT void mpt_pack_panels(const uint32_t* from, int64_t N, int64_t steps, uint32_t padding, int64_t first,
                                int64_t last, uint32_t* to) {
  mpt::pack_panels(from, N, steps, padding, first, last, to);
}
MPT_EXPORT void mpt_key_counts(int64_t* met, int64_t* left_out) {
  *met = mpt::key_counts.met, *left_out = mpt::key_counts.left_out;
}
MPT_EXPORT XLA_FFI_Error* mpt_linear(XLA_FFI_CallFrame* frame) { return mpt_linear_handler(frame); }
MPT_EXPORT XLA_FFI_Error* mpt_norm(XLA_FFI_CallFrame* frame) { return mpt_norm_handler(frame); }
MPT_EXPORT XLA_FFI_Error* mpt_sample(XLA_FFI_CallFrame* frame) { return mpt_sample_handler(frame); }
MPT_EXPORT XLA_FFI_Error* mpt_log_probabilities(XLA_FFI_CallFrame* frame) {
  return mpt_log_probabilities_handler(frame);
}
MPT_EXPORT XLA_FFI_Error* mpt_attention(XLA_FFI_CallFrame* frame) { return mpt_attention_handler(frame); }
}
