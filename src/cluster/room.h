// The memory that a loaded rank can still take.
#pragma once

#include "cluster/protocol.h"
#include "engine/step.h"

namespace tandem::cluster {

// Of MLX's default device.
Room measure_room(const engine::StepRunner& runner);

}  // namespace tandem::cluster
