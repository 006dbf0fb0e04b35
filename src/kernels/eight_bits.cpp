#include "kernels/eight_bits.h"

#include <mlx/ops.h>

#include "kernels/panels.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

constexpr int block = optimizer_block;

int blocks_of(std::size_t size) { return static_cast<int>((size + block - 1) / block); }

// Flat, the last block filled up with zeros.
mx::array in_blocks(const mx::array& x, mx::Stream s) {
  const int size = static_cast<int>(x.size()), blocks = blocks_of(x.size());
  return mx::reshape(mx::pad(mx::flatten(x, s), {{0, blocks * block - size}}, mx::array(0.0F), "constant", s),
                     {blocks, block}, s);
}

mx::array out_of_blocks(const mx::array& x, const mx::Shape& shape, mx::Stream s) {
  int size = 1;
  for (const int extent : shape) size *= extent;
  return mx::reshape(mx::slice(mx::flatten(x, s), {0}, {size}, s), shape, s);
}

mx::array rounded(const mx::array& x, const std::optional<mx::array>& noise, mx::Stream s) {
  return mx::floor(mx::add(x, noise.value_or(mx::array(0.5F)), s), s);
}

// The fourth root of each number's share of its block's largest: a division, by which the largest has all of
// it and so the top code, whatever the noise.
mx::array root_of(const mx::array& size, const mx::array& largest, mx::Stream s) {
  const mx::array zero(0.0F), one(1.0F);
  const mx::array divisor = mx::where(mx::greater(largest, zero, s), largest, one, s);
  return mx::sqrt(mx::sqrt(mx::divide(size, divisor, s), s), s);
}

mx::array fourth_power(const mx::array& x, mx::Stream s) { return mx::square(mx::square(x, s), s); }

}  // namespace

mx::array rounding_noise(std::size_t size, std::uint32_t key, mx::StreamOrDevice device) {
  const mx::Stream s = mx::to_stream(device);
  const auto number = [](std::uint32_t value) { return mx::array(value, mx::uint32); };
  const auto stirred = [&](const mx::array& x, std::uint32_t shift) {
    return mx::bitwise_xor(x, mx::right_shift(x, number(shift), s), s);
  };
  const int blocks = blocks_of(size);
  mx::array x = mx::arange(0, static_cast<double>(blocks) * block, 1, mx::uint32, s);
  x = mx::bitwise_xor(mx::multiply(x, number(noise_spread), s), number(key), s);
  x = mx::multiply(stirred(x, 16), number(noise_first), s);
  x = mx::multiply(stirred(x, 15), number(noise_second), s);
  x = mx::astype(mx::right_shift(stirred(x, 16), number(8), s), mx::float32, s);
  return mx::reshape(mx::multiply(x, mx::array(0x1p-24F), s), {blocks, block}, s);
}

EightBits pack_signed(const mx::array& x, const std::optional<mx::array>& noise, mx::StreamOrDevice device) {
  const mx::Stream s = mx::to_stream(device);
  const mx::array all = in_blocks(x, s), size = mx::abs(all, s), steps(signed_steps);
  const mx::array largest = mx::max(size, -1, /*keepdims=*/true, s);
  const mx::array step = rounded(mx::multiply(root_of(size, largest, s), steps, s), noise, s);
  const mx::array code = mx::multiply(mx::sign(all, s), mx::minimum(step, steps, s), s);
  return {mx::astype(code, mx::int8, s), largest};
}

mx::array unpack_signed(const EightBits& x, const mx::Shape& shape, mx::StreamOrDevice device) {
  const mx::Stream s = mx::to_stream(device);
  const mx::array root = mx::multiply(mx::astype(x.codes, mx::float32, s), mx::array(1 / signed_steps), s);
  const mx::array share = mx::multiply(mx::sign(root, s), fourth_power(root, s), s);
  return out_of_blocks(mx::multiply(share, x.largest, s), shape, s);
}

EightBits pack_unsigned(const mx::array& x, const std::optional<mx::array>& noise,
                        mx::StreamOrDevice device) {
  const mx::Stream s = mx::to_stream(device);
  const mx::array all = in_blocks(x, s), one(1.0F), steps(unsigned_steps);
  const mx::array largest = mx::max(all, -1, /*keepdims=*/true, s);
  const mx::array step = rounded(mx::multiply(root_of(all, largest, s), steps, s), noise, s);
  const mx::array code = mx::subtract(mx::clip(step, one, steps, s), one, s);
  return {mx::astype(code, mx::uint8, s), largest};
}

mx::array unpack_unsigned(const EightBits& x, const mx::Shape& shape, mx::StreamOrDevice device) {
  const mx::Stream s = mx::to_stream(device);
  const mx::array step = mx::add(mx::astype(x.codes, mx::float32, s), mx::array(1.0F), s);
  const mx::array root = mx::multiply(step, mx::array(1 / unsigned_steps), s);
  return out_of_blocks(mx::multiply(fourth_power(root, s), x.largest, s), shape, s);
}

}  // namespace tandem::kernels
