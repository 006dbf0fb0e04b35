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

// NVIDIA GPUs that the system shows, counted without a word to CUDA, which could then see no other number.
int nvidia_gpus();

}  // namespace tandem::hardware
