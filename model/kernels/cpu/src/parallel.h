// Work shared between the calling thread and XLA's pool, without ever waiting for a task that has not begun.
//
// Several calls may run at once on few pool threads, so a call that waited for its scheduled tasks to start could wait
// for ever. Here the caller works too, and takes every chunk that nobody has claimed; at a phase's end it waits only
// for chunks that other threads are working on at that moment. A task that starts late finds nothing to do.
#pragma once

#include <atomic>
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
    auto* held = new std::shared_ptr<detail::Job>(job);
    pool.schedule(
        [](void* data) {
          auto* held = static_cast<std::shared_ptr<detail::Job>*>(data);
          // Once every chunk of the last phase is claimed the caller may return, and the contexts with it: the check
          // by `next` inside work() comes before any use of them.
          (*held)->work();
          delete held;
        },
        held);
  }
  job->work();
  job->wait(job->num_phases - 1);
}

}  // namespace mpt
