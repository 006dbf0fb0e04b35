#include <mach/mach.h>
#include <sys/sysctl.h>

#include "hardware/memory.h"

namespace tandem::hardware {

MachineMemory machine_memory(const std::filesystem::path&) {
  MachineMemory memory;
  std::size_t size = sizeof memory.total_bytes;
  if (::sysctlbyname("hw.memsize", &memory.total_bytes, &size, nullptr, 0) != 0) return {};
  vm_statistics64_data_t pages{};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  vm_size_t page_bytes = 0;
  const mach_port_t host = mach_host_self();
  if (host_page_size(host, &page_bytes) != KERN_SUCCESS ||
      host_statistics64(host, HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&pages), &count) !=
          KERN_SUCCESS)
    return {};
  const std::uint64_t available = static_cast<std::uint64_t>(pages.free_count) + pages.inactive_count;
  memory.available_bytes = available * page_bytes;
  return memory;
}

void keep_freed_memory() {}

}  // namespace tandem::hardware
