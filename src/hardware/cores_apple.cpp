#include <sys/sysctl.h>

#include <algorithm>

#include "base/error.h"
#include "hardware/cores.h"

namespace tandem::hardware {

int physical_cores() {
  int count = 0;
  std::size_t size = sizeof(count);
  if (::sysctlbyname("hw.perflevel0.physicalcpu", &count, &size, nullptr, 0) != 0) {
    size = sizeof(count);
    if (::sysctlbyname("hw.physicalcpu", &count, &size, nullptr, 0) != 0) count = 1;
  }
  return std::max(1, count);
}

void keep_to_cores(const std::vector<int>&) {
  throw InputError("--pin: macOS binds no thread to a core; leave it out");
}

void prefer_no_preemption() {}

}  // namespace tandem::hardware
