#include "helper_pool.h"

#include <algorithm>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace mpt {
namespace {

int usable_cores() {
#if defined(__linux__)
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return std::max(1, CPU_COUNT(&cores));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

HelperPool& HelperPool::instance() {
  static HelperPool& pool = *new HelperPool;  // never destroyed: its threads use it until the process has ended
  return pool;
}

HelperPool::HelperPool() : threads_(usable_cores()) {
  for (int i = 1; i < threads_; ++i) std::thread([this] { work(); }).detach();
}

void HelperPool::schedule(void (*task)(void*), void* data) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.emplace_back(task, data);
  }
  ready_.notify_one();
}

void HelperPool::work() {
  while (true) {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait(lock, [this] { return !tasks_.empty(); });
    const auto [task, data] = tasks_.front();
    tasks_.pop_front();
    lock.unlock();
    task(data);
  }
}

}  // namespace mpt
