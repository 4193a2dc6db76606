// What this machine's memory and arithmetic units deliver, measured: one JSON object on the standard output.
//
//   roofline [THREADS] [MEBIBYTES] [REPETITIONS]
//
// read_gb_s sums a buffer far larger than the caches. The other figures are loops over registers alone, billions of
// operations per second, a multiply and an add counted as two: float32_fma_*, bfloat16_dot_* and int8_dot_*, one per
// instruction set that the compiler was allowed to use (-march=native). All threads work at once; each figure has the
// median and the best of the repetitions.

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr int kChains = 12;  // independent accumulators: more than latency x throughput, fewer than 16 registers
constexpr long kIterations = 1'000'000;
constexpr std::size_t kPage = std::size_t{2} << 20;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Figure {
  std::string name;
  double median, best;
};

// Runs work(thread) on all threads `repetitions` times; `amount` is what all of them do together, in billions.
Figure Measure(const std::string& name, double amount, int threads, int repetitions,
               const std::function<void(int)>& work) {
  std::vector<double> rates(repetitions);
  double started = 0;
  int repetition = 0;
  std::barrier begin(threads, [&]() noexcept { started = Seconds(); });
  std::barrier end(threads, [&]() noexcept { rates[repetition++] = amount / (Seconds() - started); });
  std::vector<std::thread> workers;
  for (int thread = 0; thread < threads; ++thread) {
    workers.emplace_back([&, thread] {
      for (int i = 0; i < repetitions; ++i) {
        begin.arrive_and_wait();
        work(thread);
        end.arrive_and_wait();
      }
    });
  }
  for (auto& worker : workers) worker.join();
  std::sort(rates.begin(), rates.end());
  return {name, rates[rates.size() / 2], rates.back()};
}

// Keeps a register's value alive and opaque, so that no step of a chain is folded or hoisted.
template <typename Register>
inline void Opaque(Register& value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

// kChains independent chains of `step`, operations_per_step each.
template <typename Register, typename Step>
Figure Arithmetic(const std::string& name, int operations_per_step, int threads, int repetitions, Step step) {
  const double amount = 1e-9 * operations_per_step * kChains * double(kIterations) * threads;
  return Measure(name, amount, threads, repetitions, [step](int) {
    Register chains[kChains] = {};
    for (long i = 0; i < kIterations; ++i) {
#pragma GCC unroll 12
      for (int chain = 0; chain < kChains; ++chain) {
        chains[chain] = step(chains[chain]);
        Opaque(chains[chain]);
      }
    }
  });
}

Figure ReadBandwidth(int threads, std::size_t bytes, int repetitions) {
  using Vector __attribute__((vector_size(64))) = long long;
  bytes = bytes / (kPage * threads) * kPage * threads;  // whole pages for every thread
  void* memory = std::aligned_alloc(kPage, bytes);
  if (memory == nullptr) {
    std::fprintf(stderr, "no memory for %zu bytes\n", bytes);
    std::exit(1);
  }
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  const std::size_t count = bytes / sizeof(Vector), part = count / threads;
  auto* vectors = static_cast<Vector*>(memory);
  auto fill = [&](int thread) {  // the pages lie near the core that will read them
    std::fill(vectors + thread * part, vectors + (thread + 1) * part, Vector{1});
  };
  Measure("fill", 1, threads, 1, fill);
  auto figure = Measure("read_gb_s", 1e-9 * bytes, threads, repetitions, [&](int thread) {
    Vector sums[8] = {};
    for (std::size_t i = thread * part; i < (thread + 1) * part; i += 8) {
#pragma GCC unroll 8
      for (int lane = 0; lane < 8; ++lane) sums[lane] += vectors[i + lane];
    }
    for (auto& sum : sums) asm volatile("" : : "m"(sum));
  });
  std::free(memory);
  return figure;
}

std::vector<Figure> Peaks(int threads, int repetitions) {
  std::vector<Figure> figures;
  auto add = [&](Figure figure) { figures.push_back(std::move(figure)); };
  {
    using Vector __attribute__((vector_size(16))) = float;
    const Vector a = Vector{} + 0.5f;
    add(Arithmetic<Vector>("float32_fma_128", 8, threads, repetitions, [a](Vector c) { return a * a + c; }));
  }
#if defined(__FMA__)
  {
    const __m256 a = _mm256_set1_ps(0.5f);
    add(Arithmetic<__m256>("float32_fma_avx2", 16, threads, repetitions,
                           [a](__m256 c) { return _mm256_fmadd_ps(a, a, c); }));
  }
#endif
#if defined(__AVX512F__)
  {
    const __m512 a = _mm512_set1_ps(0.5f);
    add(Arithmetic<__m512>("float32_fma_avx512", 32, threads, repetitions,
                           [a](__m512 c) { return _mm512_fmadd_ps(a, a, c); }));
  }
#endif
#if defined(__AVX512BF16__)
  {
    const auto a = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    add(Arithmetic<__m512>("bfloat16_dot_avx512", 64, threads, repetitions,
                           [a](__m512 c) { return _mm512_dpbf16_ps(c, a, a); }));
  }
#endif
#if defined(__AVX2__)
  {
    const __m256i a = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    add(Arithmetic<__m256i>("int8_dot_avx2", 64, threads, repetitions, [a, ones](__m256i c) {
      __m256i b = a;
      Opaque(b);  // or the products would be computed once
      return _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(b, a), ones));
    }));
  }
#endif
#if defined(__AVX512VNNI__)
  {
    const __m512i a = _mm512_set1_epi8(1);
    add(Arithmetic<__m512i>("int8_dot_avx512_vnni", 128, threads, repetitions,
                            [a](__m512i c) { return _mm512_dpbusd_epi32(c, a, a); }));
  }
#endif
#if defined(__AVXVNNI__)
  {
    const __m256i a = _mm256_set1_epi8(1);
    add(Arithmetic<__m256i>("int8_dot_avx_vnni", 64, threads, repetitions,
                            [a](__m256i c) { return _mm256_dpbusd_avx_epi32(c, a, a); }));
  }
#endif
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  {
    const bfloat16x8_t a = vreinterpretq_bf16_u16(vdupq_n_u16(0x3f80));
    add(Arithmetic<float32x4_t>("bfloat16_dot_neon", 16, threads, repetitions,
                                [a](float32x4_t c) { return vbfdotq_f32(c, a, a); }));
  }
#endif
#if defined(__ARM_FEATURE_DOTPROD)
  {
    const int8x16_t a = vdupq_n_s8(1);
    add(Arithmetic<int32x4_t>("int8_dot_neon", 32, threads, repetitions,
                              [a](int32x4_t c) { return vdotq_s32(c, a, a); }));
  }
#endif
  return figures;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::size_t mebibytes = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1024;
  const int repetitions = argc > 3 ? std::atoi(argv[3]) : 7;
  if (threads < 1 || mebibytes < 16 || repetitions < 1) {
    std::fprintf(stderr, "usage: %s [THREADS] [MEBIBYTES, 16 or more] [REPETITIONS]\n", argv[0]);
    return 2;
  }
  std::vector<Figure> figures = Peaks(threads, repetitions);
  figures.insert(figures.begin(), ReadBandwidth(threads, mebibytes << 20, repetitions));
  std::printf("{\"threads\": %d", threads);
  for (const auto& figure : figures) {
    std::printf(", \"%s\": {\"median\": %.2f, \"best\": %.2f}", figure.name.c_str(), figure.median, figure.best);
  }
  std::printf("}\n");
  return 0;
}
