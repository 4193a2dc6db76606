#pragma once

#include <cstdint>

#include "kernels.h"

namespace mpt {

// A matrix to quantise, and where its numbers go, packed as `LinearArgs` describes.
struct QuantiseArgs {
  const void* weight;  // [N, K]
  DType dtype;         // kFloat32 or kBfloat16
  int64_t N, K;
  int64_t group;          // int4: inputs that share a scale, a multiple of 4; 0 for int8
  uint8_t* data;          // panels
  float* row_scale;       // [N]
  uint16_t* group_scale;  // int4: float16 [ceil(N / 32), ceil(K / group), 32]
};

// Quantises panels first to last; false, with part of the result written, where a number is not finite. The numbers are
// those of `checkpoint/quantize.py`, bit for bit.
bool quantise_panels(const QuantiseArgs& a, int64_t first, int64_t last);

}  // namespace mpt
