// Memory that is zero and not there yet: a new array whose pages the system provides when they are first used.
#include <cstdint>
#include <cstring>

#include "ffi_arguments.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace mpt {
namespace {

constexpr uintptr_t kHugePage = uintptr_t{1} << 21;

// Sets memory to zero, whole huge pages by giving them back: Linux then provides zeroed ones, huge where it can.
void set_to_zero(char* begin, char* end) {
#ifdef __linux__
  const auto first = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(begin) + kHugePage - 1) & ~(kHugePage - 1));
  const auto last = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(end) & ~(kHugePage - 1));
  if (first < last && madvise(first, last - first, MADV_DONTNEED) == 0) {
    madvise(first, last - first, MADV_HUGEPAGE);  // may decline without harm
    std::memset(begin, 0, first - begin);
    begin = last;
  }
#endif
  std::memset(begin, 0, end - begin);
}

ffi::Error lazy_zeros(ffi::Result<ffi::AnyBuffer> out) {
  char* begin = static_cast<char*>(out->untyped_data());
  set_to_zero(begin, begin + out->size_bytes());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace mpt

XLA_FFI_DEFINE_HANDLER_SYMBOL(mpt_zeros_handler, mpt::lazy_zeros, ffi::Ffi::Bind().Ret<ffi::AnyBuffer>());

extern "C" {
MPT_EXPORT XLA_FFI_Error* mpt_zeros(XLA_FFI_CallFrame* frame) { return mpt_zeros_handler(frame); }
}
