// Which kernels this machine can run, and which are in use.
#include <atomic>
#include <cstring>

#include "each_isa.h"
#include "kernels.h"

namespace mpt {

#define MPT_DECLARE(isa)          \
  namespace isa {                 \
  extern const KernelTable table; \
  }
MPT_EACH_ISA(MPT_DECLARE)

StepPlan::~StepPlan() = default;

namespace {

struct Supported {
  static constexpr int kMost = 8;
  const KernelTable* tables[kMost] = {};
  const char* names[kMost] = {};
  int count = 0;
  Supported() {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#define MPT_ADD(isa) \
  if (isa::table.supported()) add(isa::table);
    MPT_EACH_ISA(MPT_ADD)
  }
  void add(const KernelTable& table) {
    tables[count] = &table;
    names[count++] = table.name;
  }
};

const Supported& all() {
  static const Supported supported;
  return supported;
}

std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> table{all().tables[0]};
  return table;
}

}  // namespace

const KernelTable& kernels() { return *chosen().load(std::memory_order_relaxed); }

const char* const* supported_kernels(int* count) {
  *count = all().count;
  return all().names;
}

bool use_kernels(const char* name) {
  for (int i = 0; i < all().count; ++i) {
    if (std::strcmp(name, all().names[i]) == 0) {
      chosen().store(all().tables[i]);
      return true;
    }
  }
  return false;
}

}  // namespace mpt
