// The loops of linear(), included by one file for each instruction set and compiled with its flags. No
// function of the standard library is used here: an inline one compiled with AVX could be linked into code
// that must run without.
#pragma once

#include "kernels/linear_loops.h"

namespace tandem::kernels {
namespace {  // its own copy in each instruction set's file

using f32x16 = float __attribute__((vector_size(64), aligned(4), may_alias));
using u32x16 = std::uint32_t __attribute__((vector_size(64), may_alias));
using u16x16 = std::uint16_t __attribute__((vector_size(32), aligned(2), may_alias));
using f16x16 = _Float16 __attribute__((vector_size(32), aligned(2), may_alias));

constexpr std::int64_t lanes = 16;
constexpr std::int64_t tile_out = 4;  // weight rows that share one pass over x

template <WeightType type>
struct Weight;

template <>
struct Weight<WeightType::f32> {
  using Element = float;
  static f32x16 load(const float* at) { return *reinterpret_cast<const f32x16*>(at); }
  static float load_one(const float* at) { return *at; }
};

template <>
struct Weight<WeightType::bf16> {
  using Element = std::uint16_t;
  static f32x16 load(const std::uint16_t* at) {
    const u32x16 bits = __builtin_convertvector(*reinterpret_cast<const u16x16*>(at), u32x16) << 16;
    return reinterpret_cast<const f32x16&>(bits);
  }
  static float load_one(const std::uint16_t* at) {
    const std::uint32_t bits = static_cast<std::uint32_t>(*at) << 16;
    return __builtin_bit_cast(float, bits);
  }
};

template <>
struct Weight<WeightType::f16> {
  using Element = _Float16;
  static f32x16 load(const _Float16* at) {
    return __builtin_convertvector(*reinterpret_cast<const f16x16*>(at), f32x16);
  }
  static float load_one(const _Float16* at) { return static_cast<float>(*at); }
};

inline float sum_lanes(const f32x16& v) {
  float parts[lanes];
  for (int i = 0; i < lanes; ++i) parts[i] = v[i];
  for (std::int64_t width = lanes / 2; width > 0; width /= 2) {
    for (std::int64_t i = 0; i < width; ++i) parts[i] += parts[i + width];
  }
  return parts[0];
}

// `count` outputs from `o` on, for every row of x.
template <WeightType type, int count>
void linear_tile(const LinearArgs& args, std::int64_t o) {
  using W = Weight<type>;
  const auto* weight = static_cast<const typename W::Element*>(args.weight) + o * args.in;
  const std::int64_t whole = args.in / lanes * lanes;
  for (std::int64_t r = 0; r < args.rows; ++r) {
    const float* x = args.x + r * args.in;
    f32x16 sums[count] = {};
    for (std::int64_t i = 0; i < whole; i += lanes) {
      const f32x16 xi = *reinterpret_cast<const f32x16*>(x + i);
      for (int k = 0; k < count; ++k) sums[k] += xi * W::load(weight + k * args.in + i);
    }
    for (int k = 0; k < count; ++k) {
      float sum = sum_lanes(sums[k]);
      for (std::int64_t i = whole; i < args.in; ++i) sum += x[i] * W::load_one(weight + k * args.in + i);
      args.y[r * args.out + o + k] = sum;
    }
  }
}

template <WeightType type>
void linear_typed(const LinearArgs& args) {
  std::int64_t o = 0;
  for (; o + tile_out <= args.out; o += tile_out) linear_tile<type, tile_out>(args, o);
  for (; o < args.out; ++o) linear_tile<type, 1>(args, o);
}

inline void linear_any(const LinearArgs& args) {
  switch (args.type) {
    case WeightType::f32:
      return linear_typed<WeightType::f32>(args);
    case WeightType::f16:
      return linear_typed<WeightType::f16>(args);
    case WeightType::bf16:
      return linear_typed<WeightType::bf16>(args);
  }
}

}  // namespace
}  // namespace tandem::kernels
