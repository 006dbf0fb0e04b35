// How much memory this machine has and can still give.
#pragma once

#include <cstdint>
#include <filesystem>

namespace tandem::hardware {

struct MachineMemory {
  std::uint64_t total_bytes = 0;
  std::uint64_t available_bytes = 0;  // without swapping; caches of files count as available
};

// On Linux by /proc/meminfo and the memory limits of the process's control groups (versions 1 and 2), both
// below `root`; on macOS by host_statistics64. Zeros where the system does not tell.
MachineMemory machine_memory(const std::filesystem::path& root = "/");

// From now on memory that this process frees stays its own, as large arrays that come and go in every step
// are paged in anew otherwise (a tenth of a training step's time). By glibc's mallopt; elsewhere nothing.
void keep_freed_memory();

}  // namespace tandem::hardware
