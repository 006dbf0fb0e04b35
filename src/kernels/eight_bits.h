// What an optimizer remembers, in 8 bit (after Dettmers et al. 2022, arXiv:2110.02861): blocks of 256
// numbers (panels.h: optimizer_block), each of which has its largest absolute value in float32 and a code for
// each of its numbers. Codes are even steps of the fourth root of a number's share of the largest, so that
// they are 1.6 % apart at the top and reach down to some 1e-9 of it.
#pragma once

#include <mlx/array.h>
#include <mlx/utils.h>

#include <cstdint>
#include <optional>

namespace tandem::kernels {

struct EightBits {
  mlx::core::array codes;    // [blocks, 256], int8 or uint8
  mlx::core::array largest;  // [blocks, 1], float32
};

// Of an array of this size: random parts of a step, each of which is added before a number is rounded down.
// Without that a mean that moves by less than half a step a time would never move. The same for the same key
// on every device (vector_loops.h: rounding_noise).
mlx::core::array rounding_noise(std::size_t size, std::uint32_t key, mlx::core::StreamOrDevice s = {});

// Without noise: to the nearest, which gives numbers that were unpacked their codes again.
EightBits pack_signed(const mlx::core::array& x, const std::optional<mlx::core::array>& noise,
                      mlx::core::StreamOrDevice s = {});
mlx::core::array unpack_signed(const EightBits& x, const mlx::core::Shape& shape,
                               mlx::core::StreamOrDevice s = {});

// Of numbers from 0 on. What is smaller than the least code, 2^-32 of the block's largest, becomes that: one
// may divide by it.
EightBits pack_unsigned(const mlx::core::array& x, const std::optional<mlx::core::array>& noise,
                        mlx::core::StreamOrDevice s = {});
mlx::core::array unpack_unsigned(const EightBits& x, const mlx::core::Shape& shape,
                                 mlx::core::StreamOrDevice s = {});

}  // namespace tandem::kernels
