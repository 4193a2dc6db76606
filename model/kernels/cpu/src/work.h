// A part of a call as phases, which can follow those of other parts on the same threads.
#pragma once

#include <vector>

#include "kernels.h"

namespace mpt {
namespace MPT_ISA {

using Phases = std::vector<Phase>;

class Work {
 public:
  virtual ~Work() = default;
  // Appends the phases that compute it; they refer to this object.
  virtual void add_to(Phases& phases) = 0;
};

}  // namespace MPT_ISA
}  // namespace mpt
