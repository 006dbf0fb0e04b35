// The memory that a loaded rank can still take.
#pragma once

#include "cluster/protocol.h"
#include "engine/step.h"
#include "hardware/machine.h"

namespace tandem::cluster {

// Of MLX's default device.
Room measure_room(const engine::StepRunner& runner);

// One rank's share of what is free for MLX's default device, of so many alike on this machine.
std::uint64_t free_memory(int ranks_on_host);

// MLX keeps memory that is freed for arrays of its size: on a GPU, where texts of all lengths go by, at most
// a sixteenth of the GPU's own memory for all ranks that share it; a half where they train, as each step
// takes again what the one before took.
void bound_free_buffers(int ranks_on_host, bool trains);

// This process's, or what MLX holds on its default device, where that is a GPU and more.
hardware::ProcessMemory rank_memory();

}  // namespace tandem::cluster
