#pragma once

#include <cstdint>

namespace mpt {

// Panels first to last of words [N, steps] -> to [ceil(N / 32), steps, 32], `padding` where there is no feature.
void pack_panels(const uint32_t* from, int64_t N, int64_t steps, uint32_t padding, int64_t first, int64_t last,
                 uint32_t* to);

}  // namespace mpt
