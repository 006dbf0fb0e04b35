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

struct AdamwStateIn8Bit {
  mlx::core::array value;  // float32
  EightBits mean;          // signed
  EightBits root;          // of the squares' mean, which reaches as far down as the mean does; unsigned
};
// The same where the running means are kept in 8 bit, in blocks of the value's numbers in row-major order.
// The key is that of rounding_noise(): another of each parameter and step, the same on ranks that hold the
// same. On a GPU stream they are unpacked, moved and packed by MLX's operations.
AdamwStateIn8Bit adamw(const AdamwStateIn8Bit& before, const mlx::core::array& gradient,
                       const AdamwStep& step, std::uint32_t key, mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
