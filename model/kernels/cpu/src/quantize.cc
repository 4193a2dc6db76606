// Quantises weights while they are packed. `checkpoint/quantize.py` is the definition, which this equals bit for bit:
// products and sums are not contracted (see CMakeLists.txt), and sums have 16 parts in a fixed order on every
// processor.
#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

// One function with all of a row's work in it, compiled for each of these; the loader chooses.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define MPT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MPT_CLONES
#endif
#define MPT_INSIDE inline __attribute__((always_inline))

namespace mpt {
namespace {

constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

constexpr float kShrinkings[] = {1.0f, 0.94f, 0.88f, 0.82f, 0.76f};
constexpr float kLeast = 1e-30f;

MPT_INSIDE void get(const float* p, Floats& v) { std::memcpy(&v, p, sizeof(v)); }

MPT_INSIDE float sum(const Floats& v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(lanes));
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

MPT_INSIDE float extreme(const Floats& v, bool most) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(lanes));
  float found = lanes[0];
  for (int64_t i = 1; i < kLanes; ++i) found = most ? std::max(found, lanes[i]) : std::min(found, lanes[i]);
  return found;
}

// Rounds numbers below 2^22 to the nearest integer, ties to even.
MPT_INSIDE void round_all(Floats& v) { v = (v + 12582912.f) - 12582912.f; }

// float16 bits <-> float32, to nearest with ties to even; numbers of float16's range.
MPT_INSIDE float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
  float value;
  if (magnitude < 0x400) {
    value = static_cast<float>(magnitude) * 0x1p-24f;
  } else {
    const uint32_t bits = (magnitude << 13) + (112u << 23);
    std::memcpy(&value, &bits, 4);
  }
  return sign ? -value : value;
}
MPT_INSIDE uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude < 113u << 23) {  // a subnormal number or zero: the sum has its integer in the lowest bits
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    std::memcpy(&bits, &shifted, 4);
    return static_cast<uint16_t>(sign | (bits - (126u << 23)));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | std::min((rounded >> 13) - (112u << 10), 0x7c00u));
}

// Reads a row as float32 into groups of `width` inputs, each padded with zeros to `space`; false if one is not finite.
MPT_INSIDE bool read_row(const QuantiseArgs& a, int64_t row, int64_t width, int64_t space, float* out) {
  uint32_t infinite = 0;
  for (int64_t begin = 0; begin < a.K; begin += width, out += space) {
    const int64_t count = std::min(width, a.K - begin), from = row * a.K + begin;
    if (a.dtype == DType::kFloat32) {
      std::memcpy(out, static_cast<const float*>(a.weight) + from, 4 * count);
    } else {
      const uint16_t* numbers = static_cast<const uint16_t*>(a.weight) + from;
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = static_cast<uint32_t>(numbers[i]) << 16;
        std::memcpy(out + i, &bits, 4);
      }
    }
    std::fill(out + count, out + space, 0.f);
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits;
      std::memcpy(&bits, out + i, 4);
      infinite |= (bits & 0x7f800000) == 0x7f800000;
    }
  }
  return !infinite;
}

// Returns the magnitude of the largest number.
MPT_INSIDE float largest(const float* numbers, int64_t count) {
  Floats high = {}, low = {}, v;
  for (int64_t i = 0; i < count; i += kLanes) {
    get(numbers + i, v);
    high = v > high ? v : high;
    low = v < low ? v : low;
  }
  return std::max(extreme(high, true), -extreme(low, false));
}

MPT_INSIDE void write_codes(const Floats& numbers, int offset, int64_t count, uint8_t* codes) {
  const Bytes bytes = __builtin_convertvector(__builtin_convertvector(numbers, Ints) + offset, Bytes);
  std::memcpy(codes, &bytes, count == kLanes ? kLanes : count);
}

MPT_CLONES float int8_row(const float* row, int64_t K, uint8_t* codes) {
  const float top = largest(row, (K + kLanes - 1) / kLanes * kLanes);
  const float scale = top > kLeast ? top / 127.f : 1.f, inverse = 1.f / scale;
  for (int64_t begin = 0; begin < K; begin += kLanes) {
    Floats v;
    get(row + begin, v);
    v *= inverse;
    round_all(v);
    write_codes(v, 128, std::min(kLanes, K - begin), codes + begin);
  }
  return scale;
}

// The integers of numbers with a scale whose inverse is given.
MPT_INSIDE void to_int4(const float* numbers, float inverse, Floats& v) {
  get(numbers, v);
  v *= inverse;
  const Floats low = Floats{} - 8.f, high = Floats{} + 7.f;
  v = v < low ? low : v;
  v = v > high ? high : v;
  round_all(v);
}
MPT_INSIDE float inverse_of(float scale) { return std::fabs(scale) > kLeast ? 1.f / scale : 0.f; }

// Quantises a row of `groups` groups; relative: [groups], each `stride` from the last. full: as many numbers, written
// here.
MPT_CLONES float int4_row(const float* row, int64_t K, int64_t group, int64_t space, int64_t groups, float* full,
                          uint8_t* codes, uint16_t* relative, int64_t stride) {
  float top = 0;
  for (int64_t g = 0; g < groups; ++g) {
    Floats v, high, low;
    get(row + g * space, high);
    low = high;
    for (int64_t i = kLanes; i < space; i += kLanes) {
      get(row + g * space + i, v);
      high = v > high ? v : high;
      low = v < low ? v : low;
    }
    float most = extreme(high, true), least = extreme(low, false);
    if (group < space) {  // of padding
      const float* numbers = row + g * space;
      most = *std::max_element(numbers, numbers + group), least = *std::min_element(numbers, numbers + group);
    }
    full[g] = (most > -least ? most : least) / -8.f + 0.f;
    top = std::max(top, std::fabs(full[g]));
  }
  const float row_scale = top > kLeast ? top : 1.f;
  for (int64_t g = 0; g < groups; ++g) {
    const float* numbers = row + g * space;
    uint16_t best = 0;
    float fewest = INFINITY;
    Floats v, w;
    for (const float shrinking : kShrinkings) {
      const uint16_t half = to_half(shrinking * full[g] / row_scale);
      const float scale = from_half(half) * row_scale, inverse = inverse_of(scale);
      Floats squares = {};
      for (int64_t i = 0; i < space; i += kLanes) {
        to_int4(numbers + i, inverse, v);
        get(numbers + i, w);
        v = v * scale - w;
        squares += v * v;
      }
      const float error = sum(squares);
      if (error < fewest) best = half, fewest = error;
    }
    float inverse = inverse_of(from_half(best) * row_scale);
    Floats products = {}, squares = {};
    for (int64_t i = 0; i < space; i += kLanes) {
      to_int4(numbers + i, inverse, v);
      get(numbers + i, w);
      products += w * v;
      squares += v * v;
    }
    best = to_half(sum(products) / std::max(sum(squares), 1.f) / row_scale);
    relative[g * stride] = best;
    inverse = inverse_of(from_half(best) * row_scale);
    const int64_t end = std::min(group, K - g * group);
    for (int64_t i = 0; i < end; i += kLanes) {
      to_int4(numbers + i, inverse, v);
      write_codes(v, 8, std::min(kLanes, end - i), codes + g * group + i);
    }
  }
  return row_scale;
}

// Writes a panel's words, [32, steps] in `codes`, in the order of the kernels.
void write_panel(const uint32_t* codes, int64_t steps, bool int4, uint32_t* out) {
  constexpr int64_t kBlock = 16;  // steps at a time: one cache line of each row
  const int64_t columns = int4 ? kPanel / 2 : kPanel;
  for (int64_t s0 = 0; s0 < steps; s0 += kBlock) {
    for (int64_t s = s0; s < std::min(s0 + kBlock, steps); ++s) {
      for (int64_t n = 0; n < columns; ++n) {
        const uint32_t word = codes[n * steps + s];
        out[s * columns + n] = int4 ? word | codes[(n + columns) * steps + s] << 4 : word;
      }
    }
  }
}

}  // namespace

bool quantise_panels(const QuantiseArgs& a, int64_t first, int64_t last) {
  const bool int4 = a.group > 0;
  const int64_t width = int4 ? a.group : a.K, groups = int4 ? (a.K + width - 1) / width : 1;
  const int64_t space = (width + kLanes - 1) / kLanes * kLanes, steps = (a.K + 3) / 4;
  const int64_t columns = int4 ? kPanel / 2 : kPanel;
  std::vector<float> row(groups * space), full(groups);
  std::vector<uint32_t> words(kPanel * steps);
  for (int64_t panel = first; panel < last; ++panel) {
    std::fill(words.begin(), words.end(), int4 ? 0x08080808u : 0x80808080u);
    uint16_t* group_scale = int4 ? a.group_scale + panel * groups * kPanel : nullptr;
    if (int4) std::fill(group_scale, group_scale + groups * kPanel, 0);
    for (int64_t n = panel * kPanel; n < std::min((panel + 1) * kPanel, a.N); ++n) {
      if (!read_row(a, n, width, space, row.data())) return false;
      const int64_t feature = n % kPanel;
      uint8_t* codes = reinterpret_cast<uint8_t*>(words.data() + feature * steps);
      a.row_scale[n] =
          int4 ? int4_row(row.data(), a.K, width, space, groups, full.data(), codes, group_scale + feature, kPanel)
               : int8_row(row.data(), a.K, codes);
    }
    write_panel(words.data(), steps, int4, reinterpret_cast<uint32_t*>(a.data) + panel * steps * columns);
  }
  return true;
}

}  // namespace mpt
