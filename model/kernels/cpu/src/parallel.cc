#include "parallel.h"

#include "phase_run.h"

#include <algorithm>
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

// Chunks that follow each other, and the next one to claim.
struct alignas(64) Lane {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// A phase and how far it has come.
struct alignas(64) Stage {
  Phase phase;
  Lane* lanes = nullptr;
  int lane_count = 0;
  alignas(64) std::atomic<int64_t> done{0};

  // Works until no chunk is left to claim, beginning with the thread's own lane. Nothing of the phase is touched
  // without a claimed chunk: without one, its call may have returned.
  // skips: returns whether to leave out a chunk that was claimed.
  template <class Skips>
  void work(int thread, const Skips& skips) {
    int64_t own = 0;
    for (int i = 0; i < lane_count; ++i) {
      Lane& lane = lanes[(thread + i) % lane_count];
      int64_t chunk = lane.next.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= lane.end) continue;
      if (own == 0 && phase.enter) phase.enter(phase.context);
      do {
        if (!skips()) phase.run(phase.context, chunk);
        ++own;
        chunk = lane.next.fetch_add(1, std::memory_order_relaxed);
      } while (chunk < lane.end);
    }
    if (own) done.fetch_add(own, std::memory_order_release);
  }

  bool finished() const { return done.load(std::memory_order_acquire) >= phase.count; }

  void wait() const {
    for (int spins = 0; !finished(); ++spins) {
      if (spins < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }
};

}  // namespace

struct Job {
  Job(const Phase* phases, int64_t count, int threads, const std::atomic<bool>* abandon)
      : count(count), stages(new Stage[count]), lanes(new Lane[count * threads]), abandon(abandon) {
    for (int64_t i = 0; i < count; ++i) {
      Stage& stage = stages[i];
      stage.phase = phases[i], stage.lanes = &lanes[i * threads], stage.lane_count = phases[i].parts ? threads : 1;
      for (int64_t lane = 0; lane < stage.lane_count; ++lane) {
        stage.lanes[lane].next.store(phases[i].count * lane / stage.lane_count, std::memory_order_relaxed);
        stage.lanes[lane].end = phases[i].count * (lane + 1) / stage.lane_count;
      }
    }
  }

  // Returns once no chunk is left to claim, and all phases but possibly the last are done.
  void work() {
    const int thread = arrived.fetch_add(1, std::memory_order_relaxed);
    for (int64_t i = 0; i < count; ++i) {
      if (!stages[i].finished()) stages[i].work(thread, [&] { return skips(i); });
      if (i + 1 < count) stages[i].wait();
    }
  }

  // Returns whether to leave out a chunk of a stage. All threads agree on the last one: it begins when the others are
  // done, and whoever has left out a chunk of those has said so before.
  bool skips(int64_t stage) {
    if (!abandon) return false;
    if (stage + 1 < count && abandon->load(std::memory_order_relaxed)) skipped.store(true, std::memory_order_relaxed);
    return skipped.load(std::memory_order_relaxed);
  }

  const int64_t count;
  const std::unique_ptr<Stage[]> stages;
  const std::unique_ptr<Lane[]> lanes;  // of all stages
  const std::atomic<bool>* const abandon;
  std::atomic<bool> skipped{false};
  std::atomic<int> arrived{0};  // threads
};

namespace {

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

void PhaseRun::begin(Pool& pool, int threads, const Phase* phases, int64_t count, const std::atomic<bool>* abandon) {
  if (count == 0) return;
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, phases[i].count);
  if (threads > pool.threads()) threads = pool.threads();
  if (const int limit = thread_limit; limit > 0 && threads > limit) threads = limit;
  if (threads > most) threads = static_cast<int>(most);
  if (threads < 1) threads = 1;
  job_ = std::make_shared<Job>(phases, count, threads, abandon);
  for (int helper = 1; helper < threads; ++helper) {
    if (WaitingHelpers::instance().hand_over(job_)) continue;
    // A helper that starts late finds every chunk claimed, and accesses nothing that the phases refer to.
    pool.schedule([](void* held) { WaitingHelpers::instance().help(static_cast<std::shared_ptr<Job>*>(held)); },
                  new std::shared_ptr<Job>(job_));
  }
}

bool PhaseRun::finish() {
  if (!job_) return true;
  job_->work();
  job_->stages[job_->count - 1].wait();
  const bool complete = !job_->skipped;
  job_.reset();
  return complete;
}

void run_phases(Pool& pool, int threads, const Phase* phases, int64_t count) {
  PhaseRun run;
  run.begin(pool, threads, phases, count);
  run.finish();
}

}  // namespace mpt
