// A step of a whole model as an XLA custom call, and the opening of a session, which takes the same model.
#include <cstring>
#include <memory>

#include "ffi_arguments.h"
#include "session.h"

namespace mpt {

// What all blocks have in common.
struct ModelAttributes {
  int64_t layers, width, vocab, heads, ffn_width;
  int64_t group;                      // of int4 weights
  int32_t norm, qk_norm, activation;  // by their numbers in kernels.h
  float eps, qk_eps, clip_qkv, scale, softcap;
  int64_t window;
  bool norm_bias, qk_norm_bias, norms_each_head, qkv_bias, bias, gated, key_norms;
  ffi::Span<const float> slopes, frequencies;
};

}  // namespace mpt

using ffi::StructMember;
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    mpt::ModelAttributes, StructMember<int64_t>("layers"), StructMember<int64_t>("width"),
    StructMember<int64_t>("vocab"), StructMember<int64_t>("heads"), StructMember<int64_t>("ffn_width"),
    StructMember<int64_t>("group"), StructMember<int32_t>("norm"), StructMember<int32_t>("qk_norm"),
    StructMember<int32_t>("activation"), StructMember<float>("eps"), StructMember<float>("qk_eps"),
    StructMember<float>("clip_qkv"), StructMember<float>("scale"), StructMember<float>("softcap"),
    StructMember<int64_t>("window"), StructMember<bool>("norm_bias"), StructMember<bool>("qk_norm_bias"),
    StructMember<bool>("norms_each_head"), StructMember<bool>("qkv_bias"), StructMember<bool>("bias"),
    StructMember<bool>("gated"), StructMember<bool>("key_norms"), StructMember<ffi::Span<const float>>("slopes"),
    StructMember<ffi::Span<const float>>("frequencies"));

namespace mpt {
namespace {

// Takes the weights of a linear layer, whose format is what their buffer tells.
ffi::Error take_linear(Rest& rest, int64_t N, int64_t K, bool bias, int64_t group, LinearArgs& a) {
  a.N = N, a.K = K;
  const auto weight = rest.next("weight");
  if (!weight) return wrong(rest.error());
  const int64_t int8 = ceil_div(N, kPanel) * kPanel * ceil_div(K, 4) * 4;
  a.format = weight->element_type() == ffi::F32    ? WeightFormat::kFloat32
             : weight->element_type() == ffi::BF16 ? WeightFormat::kBfloat16
             : count(*weight) == int8              ? WeightFormat::kInt8
                                                   : WeightFormat::kInt4;
  a.weight = weight->untyped_data();
  ffi::Error error = check_weight(a, *weight);
  if (error.success()) error = take_scales(rest, a, group);
  if (bias) a.bias = rest.vector("bias", N);
  return error;
}

// Takes a block in the order of the leaves of `model.params.weights.Block`.
ffi::Error take_block(Rest& rest, const ModelAttributes& m, const AttentionArgs& a, BlockArgs& block) {
  const int64_t q = a.H * a.hd, kv = a.Hkv * a.hd;
  take_norm(rest, block.norm_1, m.norm, m.norm_bias, m.eps, m.width);
  ffi::Error error = take_linear(rest, q + 2 * kv, m.width, m.qkv_bias, m.group, block.wqkv);
  if (error.success()) error = take_linear(rest, m.width, q, m.bias, m.group, block.out_proj);
  block.norms_each_head = m.norms_each_head;
  take_norm(rest, block.q_norm, m.qk_norm, m.qk_norm_bias, m.qk_eps, m.norms_each_head ? a.hd : q);
  take_norm(rest, block.k_norm, m.qk_norm, m.qk_norm_bias, m.qk_eps, m.norms_each_head ? a.hd : kv);
  take_norm(rest, block.norm_2, m.norm, m.norm_bias, m.eps, m.width);
  if (error.success()) error = take_linear(rest, m.ffn_width, m.width, m.bias, m.group, block.up_proj);
  if (error.success()) error = take_linear(rest, m.width, m.ffn_width, m.bias, m.group, block.down_proj);
  if (error.success() && m.gated) error = take_linear(rest, m.ffn_width, m.width, m.bias, m.group, block.gate_proj);
  return error;
}

// Takes all layers' caches, those of the blocks in their order.
ffi::Error take_caches(InPlace& buffers, bool norms, StepArgs& s) {
  for (BlockArgs& block : s.blocks) {
    AttentionArgs a = {};
    if (ffi::Error error = take_cache(buffers, norms, a); !error.success()) return error;
    if (&block == s.blocks.data()) s.attention = a;
    const AttentionArgs& first = s.attention;
    if (a.N != first.N || a.Hkv != first.Hkv || a.block != first.block || a.hd != first.hd ||
        a.cache_dtype != first.cache_dtype) {
      return wrong("all layers have a cache of the same shape");
    }
    block.k_pool = a.k_pool, block.v_pool = a.v_pool;
    block.key_norms = a.key_norms, block.key_scales = a.key_scales, block.value_scales = a.value_scales;
  }
  return buffers.all() ? ffi::Error::Success() : wrong("more results than caches");
}

// Takes all of a step that does not depend on its rows: caches, then blocks, the last norm and the head.
ffi::Error take_model(Rest& rest, const ModelAttributes& m, StepArgs& s) {
  AttentionArgs& a = s.attention;
  ffi::Error error = take_scores(m.slopes, m.scale, m.softcap, m.window, true, a);
  if (m.frequencies.size()) {
    if (a.hd % 2 || static_cast<int64_t>(m.frequencies.size()) != a.hd / 2)
      return wrong("frequencies [hd / 2] are needed");
    s.frequencies = m.frequencies.begin();
  }
  for (BlockArgs& block : s.blocks) {
    if (error.success()) error = take_block(rest, m, a, block);
  }
  s.activation = static_cast<Activation>(m.activation), s.clip_qkv = m.clip_qkv;
  take_norm(rest, s.head.norm, m.norm, m.norm_bias, m.eps, m.width);
  if (error.success()) error = take_linear(rest, m.vocab, m.width, false, m.group, s.head);
  return error;
}

ffi::Error take_cache_of(InPlace& buffers, const ModelAttributes& m, StepArgs& s) {
  if (m.layers < 1) return wrong("a model has layers");
  s.blocks.resize(m.layers);
  if (ffi::Error error = take_caches(buffers, m.key_norms, s); !error.success()) return error;
  AttentionArgs& a = s.attention;
  a.H = m.heads, a.counts = &key_counts();
  if (a.H < 1 || a.Hkv < 1 || a.H % a.Hkv) return wrong("heads share heads of keys evenly");
  return ffi::Error::Success();
}

ffi::Error step(ffi::ThreadPool thread_pool, ffi::BufferR2<ffi::F32> x, Integers positions, Integers slots,
                ffi::BufferR2<ffi::S32> block_tables, Integers query_start, Integers query_len, Integers context_len,
                Integers sampled, ffi::RemainingArgs rest_in, ffi::Result<ffi::BufferR2<ffi::F32>> hidden,
                ffi::Result<ffi::BufferR2<ffi::F32>> logits, ffi::RemainingRets caches_out, ModelAttributes m) {
  StepArgs s = {};
  s.hidden = hidden->typed_data();
  if (s.hidden != x.typed_data()) return wrong("hidden states take the place of embeddings");
  if (x.dimensions()[1] != m.width) return wrong("embeddings [T, d] are needed");
  if (logits->dimensions()[1] != m.vocab) return wrong("logits [S, V] are needed");
  InPlace buffers(rest_in, caches_out);
  if (ffi::Error error = take_cache_of(buffers, m, s); !error.success()) return error;
  AttentionArgs& a = s.attention;
  a.T = x.dimensions()[0];
  if (static_cast<int64_t>(positions.element_count()) != a.T) return wrong("every token has a position");
  s.positions = positions.typed_data();
  ffi::Error error = take_batch(slots, block_tables, query_start, query_len, context_len, a);
  Rest rest(rest_in, buffers.taken());
  if (error.success()) error = take_model(rest, m, s);
  if (error.success() && !rest.error().empty()) error = wrong(rest.error());
  if (!error.success()) return error;
  s.head.x = s.hidden, s.head.y = logits->typed_data(), s.head.M = logits->dimensions()[0];
  s.head.rows = sampled.typed_data();
  if (static_cast<int64_t>(sampled.element_count()) != s.head.M) return wrong("every row of logits has its token");
  for (int64_t i = 0; i < s.head.M; ++i) {
    if (s.head.rows[i] < 0 || s.head.rows[i] >= a.T) return wrong("tokens to sample after are tokens of the step");
  }
  XlaPool pool(thread_pool);
  run_step(s, pool);
  return ffi::Error::Success();
}

// Leaves the address of a session, as two words, in the first result.
ffi::Error open_session(ffi::RemainingArgs rest_in, ffi::Result<ffi::BufferR1<ffi::U32>> address,
                        ffi::RemainingRets caches_out, ModelAttributes m) {
  StepArgs s = {};
  LinearArgs embeddings = {};
  InPlace buffers(rest_in, caches_out);
  if (ffi::Error error = take_cache_of(buffers, m, s); !error.success()) return error;
  Rest rest(rest_in, buffers.taken());
  ffi::Error error = take_model(rest, m, s);
  if (error.success()) error = take_linear(rest, m.vocab, m.width, false, m.group, embeddings);
  if (error.success() && !rest.error().empty()) error = wrong(rest.error());
  if (error.success() && address->element_count() != 2) error = wrong("an address is two words");
  if (!error.success()) return error;
  Session* session = new Session(s, embeddings);
  std::memcpy(address->typed_data(), &session, sizeof session);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace mpt

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_step_handler, mpt::step,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .Arg<mpt::Integers>()
                                  .RemainingArgs()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>()
                                  .RemainingRets()
                                  .Attrs<mpt::ModelAttributes>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    mpt_open_session_handler, mpt::open_session,
    ffi::Ffi::Bind().RemainingArgs().Ret<ffi::BufferR1<ffi::U32>>().RemainingRets().Attrs<mpt::ModelAttributes>());

extern "C" {
MPT_EXPORT XLA_FFI_Error* mpt_step(XLA_FFI_CallFrame* frame) { return mpt_step_handler(frame); }
MPT_EXPORT XLA_FFI_Error* mpt_open_session(XLA_FFI_CallFrame* frame) { return mpt_open_session_handler(frame); }
MPT_EXPORT void mpt_start_step(mpt::Session* session, const mpt::StepInputs* inputs, bool yields) {
  session->start(*inputs, yields);
}
MPT_EXPORT bool mpt_finish_step(mpt::Session* session) { return session->finish(); }
MPT_EXPORT void mpt_abandon_step(mpt::Session* session) { session->abandon(); }
MPT_EXPORT void mpt_close_session(mpt::Session* session) { delete session; }
}
