// Threads of this library, for calls that come without XLA's.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "parallel.h"

namespace mpt {

// One thread fewer than the process may use cores: the caller is the last one. They sleep while there is no work, and
// end with the process.
class HelperPool : public Pool {
 public:
  static HelperPool& instance();
  int threads() const override { return threads_; }
  void schedule(void (*task)(void*), void* data) override;

 private:
  HelperPool();
  void work();

  const int threads_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::pair<void (*)(void*), void*>> tasks_;
};

}  // namespace mpt
