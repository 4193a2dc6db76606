#include "parallel.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mpt {

Pool::~Pool() = default;

namespace {

// Spins before a waiting thread lets others have its core: some 20 us. A thread that it waits for may have lost its own
// core to another process in the middle of a chunk, and gets one back only from the scheduler.
constexpr int kSpins = 1000;

std::atomic<int> thread_limit{0};

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct alignas(64) Progress {
  std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> done{0};
};

struct Job {
  int num_phases = 0;
  Phase phases[kMaxPhases];
  Progress progress[kMaxPhases];

  // Works until no chunk is left to claim; returns once all phases but possibly the last are done.
  void work() {
    for (int i = 0; i < num_phases; ++i) {
      if (i > 0) wait(i - 1);
      const Phase& p = phases[i];
      for (;;) {
        const int64_t chunk = progress[i].next.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= p.count) break;
        p.run(p.context, chunk);
        progress[i].done.fetch_add(1, std::memory_order_release);
      }
    }
  }

  void wait(int i) {
    for (int spins = 0; progress[i].done.load(std::memory_order_acquire) < phases[i].count; ++spins) {
      if (spins < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }
};

// Helpers that have just finished and wait briefly for the next call. Waking a sleeping thread takes 50 to 100 us,
// as long as a layer's product at batch 1; the next call usually begins within a few.
class WaitingHelpers {
 public:
  static WaitingHelpers& instance() {
    static WaitingHelpers helpers;
    return helpers;
  }

  // Gives the job to a waiting helper; false where there is none.
  bool hand_over(const std::shared_ptr<Job>& job) {
    for (auto& slot : slots_) {
      if (slot.job.load(std::memory_order_relaxed) != waiting()) continue;
      auto* held = new std::shared_ptr<Job>(job);
      auto* expected = waiting();
      if (slot.job.compare_exchange_strong(expected, held, std::memory_order_acq_rel)) return true;
      delete held;
    }
    return false;
  }

  // Runs a helper: the job it was scheduled for, and any that it is given while it waits.
  void help(std::shared_ptr<Job>* held) {
    while (held) {
      (*held)->work();
      delete held;
      held = wait_for_job();
    }
  }

 private:
  static constexpr auto kPatience = std::chrono::microseconds(100);
  struct alignas(64) Slot {
    std::atomic<std::shared_ptr<Job>*> job{nullptr};  // null: no helper waits here
  };

  static std::shared_ptr<Job>* waiting() {
    static std::shared_ptr<Job> nothing;
    return &nothing;
  }

  std::shared_ptr<Job>* wait_for_job() {
    for (auto& slot : slots_) {
      std::shared_ptr<Job>* expected = nullptr;
      if (!slot.job.compare_exchange_strong(expected, waiting())) continue;
      const auto deadline = std::chrono::steady_clock::now() + kPatience;
      do {
        for (int spin = 0; spin < 64; ++spin) {
          std::shared_ptr<Job>* job = slot.job.load(std::memory_order_acquire);
          if (job != waiting()) {
            slot.job.store(nullptr, std::memory_order_release);
            return job;
          }
          relax();
        }
        std::this_thread::yield();  // returns at once unless another process needs the core
      } while (std::chrono::steady_clock::now() < deadline);
      expected = waiting();
      if (slot.job.compare_exchange_strong(expected, nullptr)) return nullptr;
      slot.job.store(nullptr, std::memory_order_release);  // given a job at the last moment
      return expected;
    }
    return nullptr;
  }

  Slot slots_[64];
};

}  // namespace

void limit_threads(int threads) { thread_limit = threads; }

void run_phases(Pool& pool, int threads, const Phase* phases, int count) {
  auto job = std::make_shared<Job>();
  int64_t most = 0;
  for (; job->num_phases < count; ++job->num_phases) {
    job->phases[job->num_phases] = phases[job->num_phases];
    if (phases[job->num_phases].count > most) most = phases[job->num_phases].count;
  }
  if (threads > pool.threads()) threads = pool.threads();
  if (const int limit = thread_limit; limit > 0 && threads > limit) threads = limit;
  if (threads > most) threads = static_cast<int>(most);
  for (int helper = 1; helper < threads; ++helper) {
    if (WaitingHelpers::instance().hand_over(job)) continue;
    // A helper that starts late finds every chunk claimed, and accesses nothing that the phases refer to.
    pool.schedule([](void* held) { WaitingHelpers::instance().help(static_cast<std::shared_ptr<Job>*>(held)); },
                  new std::shared_ptr<Job>(job));
  }
  job->work();
  job->wait(job->num_phases - 1);
}

}  // namespace mpt
