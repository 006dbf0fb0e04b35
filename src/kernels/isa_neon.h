// Armv8.2 with dot product for panel_loops.h.
#pragma once

#include <arm_neon.h>

#include "kernels/panel_loops.h"

namespace tandem::kernels {
namespace {

struct Neon {
  using Float = float32x4_t;
  using Int = int32x4_t;
  static constexpr int lanes = 4, vectors = 4, dense_rows = 5, integer_rows = 4;
  static constexpr bool bf16_pairs = false;
  static constexpr Prefetch prefetch = prefetch_past_caches;

  static Float zero() { return vdupq_n_f32(0); }
  static Float broadcast(float v) { return vdupq_n_f32(v); }
  static Float load(const float* at) { return vld1q_f32(at); }
  static void store(float* at, Float v) { vst1q_f32(at, v); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float to_float(Int v) { return vcvtq_f32_s32(v); }

  static Float load_f16(const std::uint16_t* at) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))); }
  static Float load_bf16(const std::uint16_t* at) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at), 16));
  }
  static Float even_bf16(const std::uint16_t* at) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(vld1q_u16(at)), 16));
  }
  static Float odd_bf16(const std::uint16_t* at) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(vld1q_u16(at)), vdupq_n_u32(0xffff0000U)));
  }

  // SDOT takes signed codes: 128 is taken from them and given back here.
  static Int start8(std::int32_t sum) { return vdupq_n_s32(128 * sum); }
  static Int start4(std::int32_t) { return vdupq_n_s32(0); }

  template <int M, int V>
  static void dot8(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    for (int step = 0; step < 8; ++step) {
      int8x16_t w[V];
      for (int v = 0; v < V; ++v) {
        w[v] = vreinterpretq_s8_u8(veorq_u8(load_codes(codes + step * 128, v), vdupq_n_u8(128)));
      }
      add_products<M, V>(w, x + step * 4 * M, dots);
    }
  }

  template <int M, int V>
  static void dot4(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    for (int step = 0; step < 8; step += 2) {
      int8x16_t first[V], second[V];
      for (int v = 0; v < V; ++v) {
        const uint8x16_t both = load_codes(codes + step * 64, v);
        first[v] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        second[v] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
      }
      add_products<M, V>(first, x + step * 4 * M, dots);
      add_products<M, V>(second, x + (step + 1) * 4 * M, dots);
    }
  }

  // Vector v of codes.
  static uint8x16_t load_codes(const std::byte* codes, int v) {
    return vld1q_u8(reinterpret_cast<const std::uint8_t*>(codes + v * 16));
  }

 private:
  static Int dot_lane(Int acc, int8x16_t w, int8x16_t x, int lane) {
    switch (lane) {
      case 0:
        return vdotq_laneq_s32(acc, w, x, 0);
      case 1:
        return vdotq_laneq_s32(acc, w, x, 1);
      case 2:
        return vdotq_laneq_s32(acc, w, x, 2);
      default:
        return vdotq_laneq_s32(acc, w, x, 3);
    }
  }

  // A full tile's four rows stand in one vector.
  template <int M, int V>
  static void add_products(const int8x16_t (&w)[V], const std::byte* x, Int (&dots)[M][V]) {
    if constexpr (M == 4) {
      const int8x16_t rows = vld1q_s8(reinterpret_cast<const std::int8_t*>(x));
      for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v) dots[m][v] = dot_lane(dots[m][v], w[v], rows, m);
      }
      return;
    }
    for (int m = 0; m < M; ++m) {
      const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(read<std::int32_t>(x + 4 * m)));
      for (int v = 0; v < V; ++v) dots[m][v] = vdotq_s32(dots[m][v], w[v], four);
    }
  }
};

}  // namespace
}  // namespace tandem::kernels
