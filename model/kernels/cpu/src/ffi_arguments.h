// What the handlers of XLA's custom calls share: reading buffers, and checking that they fit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

#define MPT_EXPORT __attribute__((visibility("default")))

namespace ffi = xla::ffi;

namespace mpt {

using Integers = ffi::BufferR1<ffi::S32>;

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

inline ffi::Error wrong(const std::string& what) { return ffi::Error::InvalidArgument("mpt kernels: " + what); }

inline int64_t last(const ffi::AnyBuffer& b) { return b.dimensions().size() ? b.dimensions().back() : 1; }
inline int64_t count(const ffi::AnyBuffer& b) { return static_cast<int64_t>(b.element_count()); }

// Reads the optional arguments one after the other, and remembers the first that does not fit.
class Rest {
 public:
  explicit Rest(ffi::RemainingArgs args, size_t first = 0) : args_(args), index_(first) {}

  std::optional<ffi::AnyBuffer> next(const char* name) {
    auto found = args_.get<ffi::AnyBuffer>(index_++);
    if (found.has_value()) return found.value();
    fail(name, " is missing");
    return std::nullopt;
  }

  std::optional<ffi::AnyBuffer> next(const char* name, int64_t size) {
    const auto found = next(name);
    if (found && count(*found) != size) {
      fail(name, " has " + std::to_string(count(*found)) + " elements, not " + std::to_string(size));
    }
    return found;
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
  size_t index_;
  std::string error_;
};

inline void take_norm(Rest& rest, Norm& norm, int32_t kind, bool has_bias, float eps, int64_t K) {
  norm.kind = static_cast<Norm::Kind>(kind);
  norm.eps = eps;
  if (kind == Norm::kNone) return;
  norm.weight = rest.vector("norm weight", K);
  if (has_bias) norm.bias = rest.vector("norm bias", K);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_quantised(WeightFormat format) { return format == WeightFormat::kInt8 || format == WeightFormat::kInt4; }

// Checks the weights of a layer whose N and K are set, and their format.
inline ffi::Error check_weight(const LinearArgs& a, const ffi::AnyBuffer& weight) {
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

// Takes the scales of quantised weights.
inline ffi::Error take_scales(Rest& rest, LinearArgs& a, int64_t group) {
  if (is_quantised(a.format)) a.row_scale = rest.typed<float>("row scale", a.N, ffi::F32);
  if (a.format != WeightFormat::kInt4) return ffi::Error::Success();
  if (group < 4 || group % 4) return wrong("a group of inputs is a multiple of 4");
  a.group = group;
  a.group_scale = rest.typed<uint16_t>("group scale", ceil_div(a.N, kPanel) * kPanel * ceil_div(a.K, group), ffi::F16);
  return ffi::Error::Success();
}

// Arguments that are updated in place: the first of the remaining arguments, which are the remaining results.
class InPlace {
 public:
  InPlace(ffi::RemainingArgs in, ffi::RemainingRets out) : in_(in), out_(out) {}

  std::optional<ffi::AnyBuffer> next() {
    auto from = in_.get<ffi::AnyBuffer>(index_);
    auto to = out_.get<ffi::AnyBuffer>(index_++);
    if (!from.has_value() || !to.has_value()) return std::nullopt;
    ffi::AnyBuffer buffer = **to;
    if (buffer.untyped_data() != from->untyped_data()) return std::nullopt;
    return buffer;
  }

  size_t taken() const { return index_; }
  bool all() const { return index_ == out_.size(); }

 private:
  ffi::RemainingArgs in_;
  ffi::RemainingRets out_;
  size_t index_ = 0;
};

// Takes the cache of one layer: pools, and the numbers of each token that it keeps beside them.
inline ffi::Error take_cache(InPlace& buffers, bool norms, AttentionArgs& a) {
  const auto k = buffers.next(), v = buffers.next();
  if (!k || !v) return wrong("pools are updated in place");
  const auto shape = k->dimensions(), v_shape = v->dimensions();
  if (shape.size() != 4 || !std::equal(shape.begin(), shape.end(), v_shape.begin(), v_shape.end()))
    return wrong("pools [N, Hkv, block, hd] are needed");
  a.N = shape[0], a.Hkv = shape[1], a.block = shape[2], a.hd = shape[3];
  const ffi::DataType type = k->element_type();
  const bool whole = type == ffi::S8;
  if (type != v->element_type() || (type != ffi::F32 && type != ffi::BF16 && !whole))
    return wrong("pools are float32, bfloat16 or int8");
  a.cache_dtype = whole ? DType::kInt8 : type == ffi::F32 ? DType::kFloat32 : DType::kBfloat16;
  a.k_pool = k->untyped_data(), a.v_pool = v->untyped_data();
  bool fits = true;
  const auto numbers = [&]() -> float* {
    auto buffer = buffers.next();
    fits = fits && buffer && buffer->element_type() == ffi::F32 && count(*buffer) == a.N * a.Hkv * a.block;
    return fits ? buffer->typed_data<float>() : nullptr;
  };
  if (norms) a.key_norms = numbers();
  if (whole) a.key_scales = numbers(), a.value_scales = numbers();
  return fits ? ffi::Error::Success() : wrong("norms and scales [N, Hkv, block] float32 are updated in place");
}

// Takes the rows of a step.
inline ffi::Error take_batch(Integers slots, ffi::BufferR2<ffi::S32> block_tables, Integers query_start,
                             Integers query_len, Integers context_len, AttentionArgs& a) {
  a.R = block_tables.dimensions()[0], a.W = block_tables.dimensions()[1];
  for (const Integers* rows : {&query_start, &query_len, &context_len}) {
    if (static_cast<int64_t>(rows->element_count()) != a.R) return wrong("there are as many rows as block tables");
  }
  if (static_cast<int64_t>(slots.element_count()) != a.T) return wrong("there are as many slots as tokens");
  a.slots = slots.typed_data();
  a.block_tables = block_tables.typed_data();
  a.query_start = query_start.typed_data();
  a.query_len = query_len.typed_data();
  a.context_len = context_len.typed_data();
  return ffi::Error::Success();
}

// Takes how a score is computed.
inline ffi::Error take_scores(ffi::Span<const float> slopes, float scale, float softcap, int64_t window,
                              bool alibi_horizon, AttentionArgs& a) {
  if (slopes.size() && static_cast<int64_t>(slopes.size()) != a.H) return wrong("there are as many slopes as heads");
  a.slopes = slopes.size() ? slopes.begin() : nullptr;
  a.scale = scale, a.softcap = softcap, a.window = window, a.alibi_horizon = alibi_horizon;
  return ffi::Error::Success();
}

// Counts of this process.
KeyCounts& key_counts();

}  // namespace mpt
