#include "weights/fp8.h"

#include <fmt/format.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <array>
#include <cmath>
#include <limits>

#include "weights/source.h"

namespace tandem::weights {
namespace {

namespace mx = mlx::core;

std::array<float, 256> make_table() {
  std::array<float, 256> table{};
  for (int i = 0; i < 256; ++i) table[i] = fp8_to_float(static_cast<unsigned char>(i));
  return table;
}

}  // namespace

float fp8_to_float(unsigned char bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return bits & 0x80 ? -value : value;
}

mx::array dequantise_fp8(const mx::array& values, const mx::array& scales, int block, int first_row,
                         int first_column, mx::Dtype dtype) {
  static const std::array<float, 256> table = make_table();
  mx::array factors =
      mx::contiguous(mx::astype(scales, mx::float32, mx::Device::cpu), false, mx::Device::cpu);
  factors.eval();
  const int rows = values.shape(0), columns = values.shape(1), blocks = factors.shape(1);
  mx::array made =
      allocated(values.shape(), mx::float32, fmt::format("{} x {} values that were FP8", rows, columns));
  const auto* from = values.data<std::uint8_t>();
  float* to = made.data<float>();
  for (int r = 0; r < rows; ++r) {
    const float* factor =
        factors.data<float>() + static_cast<std::ptrdiff_t>((first_row + r) / block) * blocks;
    for (int c = 0; c < columns; ++c) *to++ = table[*from++] * factor[(first_column + c) / block];
  }
  if (dtype == mx::float32) return made;
  made = mx::astype(made, dtype, mx::Device::cpu);
  made.eval();
  return made;
}

}  // namespace tandem::weights
