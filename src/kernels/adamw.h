// A step of AdamW over one parameter, in one pass.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include "kernels/panels.h"

namespace tandem::kernels {

struct AdamwState {
  mlx::core::array value, mean, square;  // of one shape, float32
};
// What a step (panels.h) makes of a value and its running means, given its gradient. On a GPU stream MLX's
// operations, compiled into one kernel.
AdamwState adamw(const AdamwState& before, const mlx::core::array& gradient, const AdamwStep& step,
                 mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
