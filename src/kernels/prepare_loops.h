// How rows of x are made ready for the loops of panel_loops.h, as panels.h lays them out, in plain C++.
#pragma once

#include "kernels/panels.h"
#include "kernels/vector_loops.h"

namespace tandem::kernels {
namespace {

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// To nearest, ties to even, of |v| < 2^22.
inline float round_even(float v) {
  constexpr float magic = 12582912.0F;  // 1.5 * 2^23
  return (v + magic) - magic;
}

inline std::uint16_t to_bf16(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t nearest = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
  return static_cast<std::uint16_t>(value == value ? nearest : bits >> 16 | 0x40U);  // NaN stays NaN
}

// One row of a tile of m rows, as int8.
inline void prepare_int8(const float* x, std::int64_t in, int group, std::byte* tile, int row, int m) {
  auto* codes = reinterpret_cast<std::int8_t*>(tile);
  auto* scales = reinterpret_cast<float*>(tile + in * m);
  const std::int64_t groups = in / group;
  float* scaled_sums = scales + groups * m;
  auto* sums = reinterpret_cast<std::int32_t*>(scaled_sums + groups * m);
  for (std::int64_t g = 0; g < groups; ++g) {
    const float* from = x + g * group;
    const float top = largest_magnitude(from, group), poison = poison_of(from, group);
    const bool some = top > 1e-30F;  // less would overflow the inverse, and no weight makes it matter
    const float inverse = some ? 127.0F / top : 0.0F;
    std::int8_t rounded[128];
    std::int32_t sum = 0;
    for (int i = 0; i < group; ++i) {
      const auto code = static_cast<std::int32_t>(poison == 0 ? round_even(from[i] * inverse) : 0.0F);
      rounded[i] = static_cast<std::int8_t>(code);
      sum += code;
    }
    for (int i = 0; i < group; i += 4) {
      __builtin_memcpy(codes + ((g * group + i) / 4 * m + row) * 4, rounded + i, 4);
    }
    const float scale = (some ? top / 127.0F : 0.0F) + poison;
    scales[g * m + row] = scale;
    scaled_sums[g * m + row] = scale * static_cast<float>(sum);
    sums[g * m + row] = sum;
  }
}

inline constexpr int most_tile_rows = 16;

// Rows of floats as bfloat16, in pairs: pair k of row r at [k * m + r].
inline void prepare_pairs(const Prepare& args, const float* x, std::byte* tile, int m) {
  constexpr int at_once = 2 * panel_outputs;  // turn() takes as many pairs
  auto* to = reinterpret_cast<std::uint16_t*>(tile);
  float pairs[most_tile_rows * panel_outputs];
  const std::int64_t whole = args.in / at_once * at_once;
  for (std::int64_t k = 0; k < whole; k += at_once) {
    for (int row = 0; row < m; ++row) {
      std::uint16_t rounded[at_once];
      for (int i = 0; i < at_once; ++i) rounded[i] = to_bf16(x[row * args.stride + k + i]);
      __builtin_memcpy(pairs + row * panel_outputs, rounded, sizeof rounded);
    }
    turn(pairs, panel_outputs, m, reinterpret_cast<float*>(to + k * m), m);
  }
  for (std::int64_t k = whole; k < even(args.in); ++k) {
    for (int row = 0; row < m; ++row)
      to[(k / 2 * m + row) * 2 + k % 2] = k < args.in ? to_bf16(x[row * args.stride + k]) : std::uint16_t{0};
  }
}

// A tile of m rows of floats.
inline void prepare_floats(const Prepare& args, const float* x, float* tile, int m) {
  const std::int64_t whole = args.in / panel_outputs * panel_outputs;
  for (std::int64_t k = 0; k < whole; k += panel_outputs) turn(x + k, args.stride, m, tile + k * m, m);
  for (std::int64_t k = whole; k < even(args.in); ++k) {
    for (int row = 0; row < m; ++row) tile[k * m + row] = k < args.in ? x[row * args.stride + k] : 0;
  }
}

template <class Isa>
void prepare(const Prepare& args, std::int64_t first_tile, std::int64_t end_tile) {
  static_assert(Isa::dense_rows <= most_tile_rows);
  const std::int64_t rows = args.activation == Activation::int8 ? Isa::integer_rows : Isa::dense_rows;
  const std::int64_t bytes = prepared_bytes(args.activation, args.in, args.group);
  for (std::int64_t tile = first_tile; tile < end_tile; ++tile) {
    const std::int64_t first = tile * rows;
    const int m = static_cast<int>(smaller(rows, args.rows - first));
    const float* x = args.x + first * args.stride;
    std::byte* to = args.prepared + first * bytes;
    switch (args.activation) {
      case Activation::f32:
        prepare_floats(args, x, reinterpret_cast<float*>(to), m);
        break;
      case Activation::bf16:
        prepare_pairs(args, x, to, m);
        break;
      case Activation::bf16_x3:  // AMX's alone, which has its own way
        break;
      case Activation::int8:
        for (int row = 0; row < m; ++row)
          prepare_int8(x + row * args.stride, args.in, args.group, to, row, m);
        break;
    }
  }
}

}  // namespace
}  // namespace tandem::kernels
