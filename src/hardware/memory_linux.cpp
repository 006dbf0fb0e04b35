#include <malloc.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include "hardware/memory.h"

namespace tandem::hardware {
namespace {

namespace fs = std::filesystem;

// The number after `name` on its line; nothing where there is no such line.
std::optional<std::uint64_t> field(const fs::path& file, const std::string& name) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    std::istringstream words(line);
    std::string word;
    std::uint64_t value = 0;
    if (words >> word >> value && word == name) return value;
  }
  return std::nullopt;
}

// A file that holds one number; nothing where it is missing or says "max".
std::optional<std::uint64_t> number(const fs::path& file) {
  std::ifstream stream(file);
  std::uint64_t value = 0;
  return stream >> value ? std::optional(value) : std::nullopt;
}

struct GroupFiles {
  const char *limit, *used, *reclaimable;
};
constexpr GroupFiles version_1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
constexpr GroupFiles version_2{"memory.max", "memory.current", "inactive_file"};

// What the control group and those above it allow.
void bound_by_groups(const fs::path& mount, fs::path group, const GroupFiles& files, MachineMemory& memory) {
  while (true) {
    const fs::path folder = mount / group;
    const auto limit = number(folder / files.limit), used = number(folder / files.used);
    if (limit && used) {
      const auto cached = field(folder / "memory.stat", files.reclaimable).value_or(0);
      const auto held = *used - std::min(*used, cached);
      memory.total_bytes = std::min(memory.total_bytes, *limit);
      memory.available_bytes = std::min(memory.available_bytes, *limit - std::min(*limit, held));
    }
    if (group.empty()) return;
    group = group.parent_path();
  }
}

}  // namespace

MachineMemory machine_memory(const fs::path& root) {
  const fs::path meminfo = root / "proc/meminfo";
  MachineMemory memory{field(meminfo, "MemTotal:").value_or(0) * 1024,
                       field(meminfo, "MemAvailable:").value_or(0) * 1024};
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // number:controllers:/path
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path group = fs::path(line.substr(second + 1)).relative_path();
    if (controllers.empty()) bound_by_groups(root / "sys/fs/cgroup", group, version_2, memory);
    if (("," + controllers + ",").find(",memory,") != std::string::npos)
      bound_by_groups(root / "sys/fs/cgroup/memory", group, version_1, memory);
  }
  return memory;
}

void keep_freed_memory() {
#ifdef __GLIBC__
  constexpr int most = 1 << 30, most_before_2_35 = 32 << 20;
  if (::mallopt(M_MMAP_THRESHOLD, most) == 0) ::mallopt(M_MMAP_THRESHOLD, most_before_2_35);
  ::mallopt(M_TRIM_THRESHOLD, most);
#endif
}

}  // namespace tandem::hardware
