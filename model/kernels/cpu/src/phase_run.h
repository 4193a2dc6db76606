// Phases that other threads begin while the caller does something else, until it joins them.
#pragma once

#include <atomic>
#include <memory>

#include "parallel.h"

namespace mpt {

struct Job;

class PhaseRun {
 public:
  // Gives the phases to up to `threads - 1` other threads. What they refer to must live until `finish` has returned.
  // abandon: once that is true, chunks are left out, or null. Those of the last phase are left out only together with
  // others, so that either all of that phase is computed or none.
  void begin(Pool& pool, int threads, const Phase* phases, int64_t count, const std::atomic<bool>* abandon = nullptr);
  // Works on what is left, and returns when all is done; at once where nothing was begun. Returns whether no chunk was
  // left out.
  bool finish();

 private:
  std::shared_ptr<Job> job_;
};

}  // namespace mpt
