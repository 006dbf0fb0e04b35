#include "train/eight_bits.h"

#include <mlx/ops.h>
#include <mlx/random.h>

namespace tandem::train {
namespace {

namespace mx = mlx::core;

constexpr int block = 256;
constexpr float signed_steps = 127, unsigned_steps = 256;

// Flat, the last block filled up with zeros.
mx::array in_blocks(const mx::array& x) {
  const int size = static_cast<int>(x.size()), blocks = (size + block - 1) / block;
  return mx::reshape(mx::pad(mx::flatten(x), {{0, blocks * block - size}}), {blocks, block});
}

mx::array out_of_blocks(const mx::array& x, const mx::Shape& shape) {
  int size = 1;
  for (const int extent : shape) size *= extent;
  return mx::reshape(mx::slice(mx::flatten(x), {0}, {size}), shape);
}

mx::array rounded(const mx::array& x, const std::optional<mx::array>& noise) {
  return mx::floor(mx::add(x, noise.value_or(mx::array(0.5F))));
}

// The fourth root of each number's share of its block's largest.
mx::array root_of(const mx::array& size, const mx::array& largest) {
  const mx::array divisor = mx::where(mx::greater(largest, mx::array(0.0F)), largest, mx::array(1.0F));
  return mx::sqrt(mx::sqrt(mx::divide(size, divisor)));
}

mx::array fourth_power(const mx::array& x) { return mx::square(mx::square(x)); }

}  // namespace

mx::array rounding_noise(std::size_t size, const mx::array& key) {
  const int blocks = static_cast<int>((size + block - 1) / block);
  const mx::array bits = mx::random::bits({blocks, block}, /*width=*/2, key);
  return mx::multiply(mx::astype(bits, mx::float32), mx::array(0x1p-16F));
}

EightBits pack_signed(const mx::array& x, const std::optional<mx::array>& noise) {
  const mx::array all = in_blocks(x), size = mx::abs(all);
  const mx::array largest = mx::max(size, -1, /*keepdims=*/true), steps(signed_steps);
  const mx::array code = mx::minimum(rounded(mx::multiply(root_of(size, largest), steps), noise), steps);
  return {mx::astype(mx::multiply(mx::sign(all), code), mx::int8), largest};
}

mx::array unpack_signed(const EightBits& x, const mx::Shape& shape) {
  const mx::array root = mx::divide(mx::astype(x.codes, mx::float32), mx::array(signed_steps));
  return out_of_blocks(mx::multiply(mx::multiply(mx::sign(root), fourth_power(root)), x.largest), shape);
}

EightBits pack_unsigned(const mx::array& x, const std::optional<mx::array>& noise) {
  const mx::array all = in_blocks(x);
  const mx::array largest = mx::max(all, -1, /*keepdims=*/true), one(1.0F);
  const mx::array step = rounded(mx::multiply(root_of(all, largest), mx::array(unsigned_steps)), noise);
  const mx::array code = mx::subtract(mx::clip(step, one, mx::array(unsigned_steps)), one);
  return {mx::astype(code, mx::uint8), largest};
}

mx::array unpack_unsigned(const EightBits& x, const mx::Shape& shape) {
  const mx::array step = mx::add(mx::astype(x.codes, mx::float32), mx::array(1.0F));
  const mx::array root = mx::divide(step, mx::array(unsigned_steps));
  return out_of_blocks(mx::multiply(fourth_power(root), x.largest), shape);
}

}  // namespace tandem::train
