#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>

#include "base/error.h"
#include "base/limits.h"
#include "hardware/cores.h"

namespace tandem::hardware {
namespace {

static_assert(limits::cores <= CPU_SETSIZE);

std::vector<int> usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return cores;
  for (int core = 0; core < limits::cores; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

}  // namespace

int physical_cores() {
  std::set<std::string> siblings;  // the hardware threads of one core share a list
  for (const int core : usable_cores()) {
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", core));
    std::string list;
    if (!std::getline(file, list)) list = std::to_string(core);
    siblings.insert(list);
  }
  return std::max(1, static_cast<int>(siblings.size()));
}

void prefer_no_preemption() {
  const sched_param none{};
  ::sched_setscheduler(0, SCHED_BATCH, &none);  // a wish
}

void keep_to_cores(const std::vector<int>& cores) {
  const auto usable = usable_cores();
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) {
    if (std::find(usable.begin(), usable.end(), core) == usable.end()) {
      throw InputError(fmt::format("--pin: core {} is none that this process may use; those are {}", core,
                                   fmt::join(usable, ", ")));
    }
    CPU_SET(core, &set);
  }
  if (::sched_setaffinity(0, sizeof(set), &set) != 0) {
    throw InputError(fmt::format("--pin: the system refuses the cores {}", fmt::join(cores, ", ")));
  }
}

}  // namespace tandem::hardware
