#include "cluster/room.h"

#include <mlx/device.h>
#include <mlx/memory.h>

#include <algorithm>

#include "engine/step_memory.h"
#include "hardware/machine.h"
#include "hardware/memory.h"

namespace tandem::cluster {
namespace {

namespace mx = mlx::core;

// What MLX says of its default device; 0: nothing.
std::uint64_t gpu_bytes(const char* name) {
  const auto& info = mx::device_info(mx::default_device());
  const auto found = info.find(name);
  return found == info.end() ? 0 : std::get<std::size_t>(found->second);
}

// A GPU of its own memory, or of the machine's.
void measure_gpu(Room& room) {
  mx::clear_cache();
  if (const std::uint64_t free = gpu_bytes("free_memory"); free > 0) {  // CUDA
    room.memory = std::get<std::string>(mx::device_info(mx::default_device()).at("uuid"));
    room.total_bytes = gpu_bytes("total_memory");
    room.free_bytes = free;
  } else if (const std::uint64_t most = gpu_bytes("max_recommended_working_set_size"); most > 0) {  // Metal
    room.free_bytes =
        std::min<std::uint64_t>(room.free_bytes, most - std::min(most, mx::get_active_memory()));
  }
}

// The most of a machine's ranks that share a GPU.
std::uint64_t ranks_on_gpu(int ranks_on_host) {
  const int gpus = std::max(1, hardware::nvidia_gpus());
  return static_cast<std::uint64_t>((ranks_on_host + gpus - 1) / gpus);
}

}  // namespace

void bound_free_buffers(int ranks_on_host, bool trains) {
  const std::uint64_t share = trains ? 2 : 16;
  const std::uint64_t own = mx::default_device() == mx::Device::gpu ? gpu_bytes("total_memory") : 0;
  if (own == 0) return;
  mx::set_cache_limit(own / share / ranks_on_gpu(ranks_on_host));
}

Room measure_room(const engine::StepRunner& runner) {
  const auto memory = hardware::machine_memory();
  const auto needs = runner.memory();
  Room room{.free_bytes = memory.available_bytes,
            .total_bytes = memory.total_bytes,
            .block_bytes = needs.block,
            .buffer_bytes = needs.buffers,
            .position_bytes = needs.position,
            .model_context = runner.model_context()};
  if (mx::default_device() == mx::Device::gpu) measure_gpu(room);
  return room;
}

std::uint64_t free_memory(int ranks_on_host) {
  Room room{.free_bytes = hardware::machine_memory().available_bytes};
  if (mx::default_device() == mx::Device::cpu)
    return room.free_bytes / static_cast<std::uint64_t>(ranks_on_host);
  measure_gpu(room);
  return room.free_bytes / ranks_on_gpu(ranks_on_host);
}

hardware::ProcessMemory rank_memory() {
  auto memory = hardware::process_memory();
  if (mx::default_device() == mx::Device::gpu) {
    memory.resident_bytes = std::max<std::uint64_t>(memory.resident_bytes, mx::get_active_memory());
    memory.peak_bytes = std::max<std::uint64_t>(memory.peak_bytes, mx::get_peak_memory());
  }
  return memory;
}

}  // namespace tandem::cluster
