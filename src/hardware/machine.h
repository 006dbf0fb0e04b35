// What this machine is and uses now.
#pragma once

#include <cstdint>
#include <string>

namespace tandem::hardware {

// Resident memory of this process now and at its highest, bytes; 0 where the system does not tell.
struct ProcessMemory {
  std::uint64_t resident_bytes = 0;
  std::uint64_t peak_bytes = 0;
};
ProcessMemory process_memory();

// The machine's memory, bytes; 0 where the system does not tell.
std::uint64_t machine_memory_bytes();

std::string host_name();

}  // namespace tandem::hardware
