// Phases that other threads begin while the caller does something else, until it joins them.
#pragma once

#include <memory>

#include "parallel.h"

namespace mpt {

struct Job;

class PhaseRun {
 public:
  // Gives the phases to up to `threads - 1` other threads. What they refer to must live until `finish` has returned.
  void begin(Pool& pool, int threads, const Phase* phases, int64_t count);
  // Works on what is left, and returns when all is done; at once where nothing was begun.
  void finish();

 private:
  std::shared_ptr<Job> job_;
};

}  // namespace mpt
