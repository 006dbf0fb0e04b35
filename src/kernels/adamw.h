// A step of AdamW over one parameter, in one pass.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <cstdint>

#include "kernels/eight_bits.h"
#include "kernels/panels.h"

namespace tandem::kernels {

struct AdamwState {
  mlx::core::array value, mean, square;  // of one shape, float32
};
// What a step (panels.h) makes of a value and its running means, given its gradient. On a GPU stream MLX's
// operations, compiled into one kernel.
AdamwState adamw(const AdamwState& before, const mlx::core::array& gradient, const AdamwStep& step,
                 mlx::core::StreamOrDevice s = {});

struct AdamwBits {
  mlx::core::array value;  // float32
  EightBits mean;          // signed
  EightBits root;          // of the squares' mean, which reaches as far down as the mean does; unsigned
};
// The same where the running means are kept in 8 bit, rounded by the key's noise.
AdamwBits adamw(const AdamwBits& before, const mlx::core::array& gradient, const AdamwStep& step,
                std::uint32_t key, mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
