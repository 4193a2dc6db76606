// Shares work between the calling thread and XLA's pool, and never waits for a task that has not begun.
//
// Several calls may run at once on few pool threads, so a call that waited for its scheduled tasks to start could wait
// forever. Here the caller works too, and takes every unclaimed chunk; at the end of a phase it waits only for chunks
// that other threads are working on at that moment. A task that starts late takes part in the phases that are left.
//
// This header is part of every instruction set's object: nothing in it may become a separate function there, or the
// linker could keep one that not every machine can run.
#pragma once

#include <cstdint>

namespace mpt {

// Runs tasks on other threads: now, later, or never.
class Pool {
 public:
  virtual ~Pool();
  virtual int threads() const = 0;
  virtual void schedule(void (*task)(void*), void* data) = 0;
};

// The most threads that one call may use in this process from now on, the caller included; 0 for all of the pool.
void limit_threads(int threads);

// `count` chunks of work; `run(context, chunk)` computes one. `enter(context)`, if there is one, runs on each thread
// before its first chunk. Threads take the chunks in their order; with `parts`, each begins with its own part, whose
// chunks follow each other, and then takes what others have left of theirs.
struct Phase {
  int64_t count;
  void (*run)(void* context, int64_t chunk);
  void* context;
  void (*enter)(void* context) = nullptr;
  bool parts = false;
};

template <class F>
Phase phase(int64_t count, F& f) {
  return {count, [](void* context, int64_t chunk) { (*static_cast<F*>(context))(chunk); }, &f};
}

// Runs phases one after the other, the chunks of each in any order on up to `threads` threads, which stay together from
// phase to phase. Returns when all is done. What the phases refer to must live until then.
void run_phases(Pool& pool, int threads, const Phase* phases, int64_t count);

inline __attribute__((always_inline)) void run_phase(Pool& pool, int threads, Phase phase) {
  run_phases(pool, threads, &phase, 1);
}

}  // namespace mpt
