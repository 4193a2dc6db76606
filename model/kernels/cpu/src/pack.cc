// Packs weights in the order in which the kernels read them, as words of four bytes of any content.
#include "pack.h"

#include <algorithm>

#include "kernels.h"

namespace mpt {

void pack_panels(const uint32_t* from, int64_t N, int64_t steps, uint32_t padding, int64_t first, int64_t last,
                 uint32_t* to) {
  constexpr int64_t kBlock = 16;  // steps at a time: one cache line of each of the panel's rows
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t rows = std::min(kPanel, N - panel * kPanel);
    const uint32_t* row0 = from + panel * kPanel * steps;
    uint32_t* out = to + panel * kPanel * steps;
    for (int64_t s0 = 0; s0 < steps; s0 += kBlock) {
      const int64_t s1 = std::min(s0 + kBlock, steps);
      for (int64_t s = s0; s < s1; ++s) {
        for (int64_t n = 0; n < rows; ++n) out[s * kPanel + n] = row0[n * steps + s];
        std::fill(out + s * kPanel + rows, out + (s + 1) * kPanel, padding);
      }
    }
  }
}

}  // namespace mpt
