// The kernels as XLA custom calls: buffers and attributes in, records of kernels.h out. Each handler checks its
// arguments, because a wrong shape would be a read out of bounds.
#include "ffi_arguments.h"
#include "pack.h"
#include "quantize.h"

namespace mpt {
namespace {

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
  if (ffi::Error error = take_scales(rest, a, group); !error.success()) return error;
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

ffi::Error rope(ffi::ThreadPool thread_pool, ffi::BufferR3<ffi::F32> x, Integers positions,
                ffi::Result<ffi::BufferR3<ffi::F32>> y, ffi::Span<const float> frequencies) {
  RopeArgs a = {};
  a.T = x.dimensions()[0], a.heads = x.dimensions()[1], a.hd = x.dimensions()[2];
  if (!std::equal(x.dimensions().begin(), x.dimensions().end(), y->dimensions().begin()))
    return wrong("y is as large as x");
  if (static_cast<int64_t>(positions.element_count()) != a.T) return wrong("every token has a position");
  if (a.hd % 2 || static_cast<int64_t>(frequencies.size()) != a.hd / 2) return wrong("frequencies [hd / 2] are needed");
  a.x = x.typed_data(), a.positions = positions.typed_data(), a.frequencies = frequencies.begin();
  a.y = y->typed_data();
  XlaPool pool(thread_pool);
  if (a.T) kernels().rope(a, pool);
  return ffi::Error::Success();
}

ffi::Error attention(ffi::ThreadPool thread_pool, ffi::BufferR2<ffi::F32> qkv, Integers slots,
                     ffi::BufferR2<ffi::S32> block_tables, Integers query_start, Integers query_len,
                     Integers context_len, ffi::RemainingArgs cache_in, ffi::Result<ffi::BufferR2<ffi::F32>> out,
                     ffi::RemainingRets cache_out, ffi::Span<const float> slopes, float scale, float softcap,
                     int64_t window, bool norms, bool alibi_horizon) {
  AttentionArgs a = {};
  InPlace cache(cache_in, cache_out);
  if (ffi::Error error = take_cache(cache, norms, a); !error.success()) return error;
  if (!cache.all() || cache.taken() != cache_in.size()) return wrong("more arguments than the cache of a layer");
  a.counts = &key_counts();
  a.T = qkv.dimensions()[0];
  a.H = a.hd ? qkv.dimensions()[1] / a.hd - 2 * a.Hkv : 0;
  if (a.H < 1 || a.H % a.Hkv || (a.H + 2 * a.Hkv) * a.hd != qkv.dimensions()[1])
    return wrong("qkv [T, (H + 2 Hkv) hd] is needed");
  if (out->dimensions()[0] != a.T || out->dimensions()[1] != a.H * a.hd) return wrong("out [T, H hd] is needed");
  a.qkv = qkv.typed_data();
  a.out = out->typed_data();
  ffi::Error error = take_batch(slots, block_tables, query_start, query_len, context_len, a);
  if (error.success()) error = take_scores(slopes, scale, softcap, window, alibi_horizon, a);
  if (!error.success()) return error;
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

KeyCounts& key_counts() {
  static KeyCounts counts;
  return counts;
}

}  // namespace mpt

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_rope_handler, mpt::rope,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR3<ffi::F32>>()
                                  .Arg<mpt::Integers>()
                                  .Ret<ffi::BufferR3<ffi::F32>>()
                                  .Attr<ffi::Span<const float>>("frequencies"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_attention_handler, mpt::attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<mpt::Integers>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .RemainingArgs()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
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
MPT_EXPORT bool mpt_quantise_panels(const mpt::QuantiseArgs* args, int64_t first, int64_t last) {
  return mpt::quantise_panels(*args, first, last);
}
MPT_EXPORT void mpt_key_counts(int64_t* met, int64_t* left_out) {
  *met = mpt::key_counts().met, *left_out = mpt::key_counts().left_out;
}
MPT_EXPORT XLA_FFI_Error* mpt_linear(XLA_FFI_CallFrame* frame) { return mpt_linear_handler(frame); }
MPT_EXPORT XLA_FFI_Error* mpt_norm(XLA_FFI_CallFrame* frame) { return mpt_norm_handler(frame); }
MPT_EXPORT XLA_FFI_Error* mpt_rope(XLA_FFI_CallFrame* frame) { return mpt_rope_handler(frame); }
MPT_EXPORT XLA_FFI_Error* mpt_sample(XLA_FFI_CallFrame* frame) { return mpt_sample_handler(frame); }
MPT_EXPORT XLA_FFI_Error* mpt_log_probabilities(XLA_FFI_CallFrame* frame) {
  return mpt_log_probabilities_handler(frame);
}
MPT_EXPORT XLA_FFI_Error* mpt_attention(XLA_FFI_CallFrame* frame) { return mpt_attention_handler(frame); }
}
