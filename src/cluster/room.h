// The memory that a loaded rank can still take.
#pragma once

#include "cluster/protocol.h"
#include "engine/step.h"
#include "hardware/machine.h"

namespace tandem::cluster {

// Of MLX's default device.
Room measure_room(const engine::StepRunner& runner);

// This process's, or what MLX holds on its default device, where that is a GPU and more.
hardware::ProcessMemory rank_memory();

}  // namespace tandem::cluster
