// Work shared between the calling thread and XLA's pool, without ever waiting for a task that has not begun.
//
// Several calls may run at once on few pool threads, so a call that waited for its scheduled tasks to start could wait
// for ever. Here the caller works too, and takes every chunk that nobody has claimed; at a phase's end it waits only
// for chunks that other threads are working on at that moment. A task that starts late finds nothing to do.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mpt {

// Something that runs tasks on other threads, now or later, or never.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual int threads() const = 0;
  virtual void schedule(void (*task)(void*), void* data) = 0;
};

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// `count` chunks of work; `run(context, chunk)` does one.
struct Phase {
  int64_t count;
  void (*run)(void* context, int64_t chunk);
  void* context;
};

template <class F>
Phase phase(int64_t count, F& f) {
  return {count, [](void* context, int64_t chunk) { (*static_cast<F*>(context))(chunk); }, &f};
}

namespace detail {

constexpr int kMaxPhases = 3;

struct alignas(64) Progress {
  std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> done{0};
};

struct Job {
  int num_phases;
  Phase phases[kMaxPhases];
  Progress progress[kMaxPhases];

  // Takes part until nothing is left to claim; returns once all earlier phases are done, the last one perhaps not.
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
      if (spins < 20000) {
        relax();
      } else {
        std::this_thread::yield();  // the thread that we wait for may need this core
      }
    }
  }
};

// Where helpers that have just finished wait a moment for the next call. Waking a sleeping thread takes 50 to 100 us,
// as long as a layer's product at batch 1; the next one usually begins within a few.
class Lobby {
 public:
  static Lobby& instance() {
    static Lobby lobby;
    return lobby;
  }

  // Gives the job to a waiting helper; false where there is none.
  bool hand_over(const std::shared_ptr<Job>& job) {
    for (auto& seat : seats_) {
      if (seat.job.load(std::memory_order_relaxed) != waiting()) continue;
      auto* held = new std::shared_ptr<Job>(job);
      auto* expected = waiting();
      if (seat.job.compare_exchange_strong(expected, held, std::memory_order_acq_rel)) return true;
      delete held;
    }
    return false;
  }

  // A helper's life: the job it came for, and whatever it is given while it waits.
  void help(std::shared_ptr<Job>* held) {
    while (held) {
      (*held)->work();
      delete held;
      held = wait_for_job();
    }
  }

 private:
  static constexpr auto kPatience = std::chrono::microseconds(100);
  struct alignas(64) Seat {
    std::atomic<std::shared_ptr<Job>*> job{nullptr};  // null: nobody sits here
  };

  static std::shared_ptr<Job>* waiting() {
    static std::shared_ptr<Job> nothing;
    return &nothing;
  }

  std::shared_ptr<Job>* wait_for_job() {
    for (auto& seat : seats_) {
      std::shared_ptr<Job>* expected = nullptr;
      if (!seat.job.compare_exchange_strong(expected, waiting())) continue;
      const auto deadline = std::chrono::steady_clock::now() + kPatience;
      do {
        for (int spin = 0; spin < 64; ++spin) {
          std::shared_ptr<Job>* job = seat.job.load(std::memory_order_acquire);
          if (job != waiting()) {
            seat.job.store(nullptr, std::memory_order_release);
            return job;
          }
          relax();
        }
      } while (std::chrono::steady_clock::now() < deadline);
      expected = waiting();
      if (seat.job.compare_exchange_strong(expected, nullptr)) return nullptr;
      seat.job.store(nullptr, std::memory_order_release);  // given a job at the last moment
      return expected;
    }
    return nullptr;
  }

  Seat seats_[64];
};

}  // namespace detail

// Runs the phases one after the other, the chunks of each in any order on up to `threads` threads. Returns when all is
// done. What the phases refer to must live until then, no longer.
template <class... Phases>
void run_phases(Pool& pool, int threads, Phases... phases) {
  static_assert(sizeof...(Phases) <= detail::kMaxPhases);
  auto job = std::make_shared<detail::Job>();
  job->num_phases = 0;
  int64_t most = 0;
  for (const Phase& p : {phases...}) {
    job->phases[job->num_phases++] = p;
    most = p.count > most ? p.count : most;
  }
  if (threads > pool.threads()) threads = pool.threads();
  if (threads > most) threads = static_cast<int>(most);
  for (int helper = 1; helper < threads; ++helper) {
    if (detail::Lobby::instance().hand_over(job)) continue;
    // One that starts late finds every chunk claimed, and touches nothing that the phases refer to.
    pool.schedule(
        [](void* held) { detail::Lobby::instance().help(static_cast<std::shared_ptr<detail::Job>*>(held)); },
        new std::shared_ptr<detail::Job>(job));
  }
  job->work();
  job->wait(job->num_phases - 1);
}

}  // namespace mpt
