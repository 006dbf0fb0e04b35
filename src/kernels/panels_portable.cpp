// The reference that the other instruction sets are tested against: eight lanes in plain C++.
#include "kernels/panel_loops.h"

namespace tandem::kernels {
namespace {

struct Portable {
  static constexpr int lanes = 8, vectors = 4, dense_rows = 2, integer_rows = 2;
  static constexpr bool bf16_pairs = false;
  static constexpr Prefetch prefetch = prefetch_past_caches;
  struct Float {
    float at[lanes];
  };
  struct Int {
    std::int32_t at[lanes];
  };

  template <class Vector>
  static Vector each(auto value) {
    Vector made;
    for (int i = 0; i < lanes; ++i) made.at[i] = value(i);
    return made;
  }
  static Float zero() {
    return each<Float>([](int) { return 0.0F; });
  }
  static Float broadcast(float v) {
    return each<Float>([=](int) { return v; });
  }
  static Float load(const float* from) {
    return each<Float>([=](int i) { return from[i]; });
  }
  static void store(float* to, const Float& v) {
    for (int i = 0; i < lanes; ++i) to[i] = v.at[i];
  }
  static Float fma(const Float& a, const Float& b, const Float& c) {
    return each<Float>([&](int i) { return __builtin_fmaf(a.at[i], b.at[i], c.at[i]); });
  }
  static Float mul(const Float& a, const Float& b) {
    return each<Float>([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Float to_float(const Int& v) {
    return each<Float>([&](int i) { return static_cast<float>(v.at[i]); });
  }

  static float from_bits(std::uint32_t bits) { return read<float>(&bits); }
  static float from_f16(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000U) << 16, exponent = half >> 10 & 31U, fraction = half & 1023U;
    if (exponent == 31) return from_bits(sign | 0x7f800000U | fraction << 13);
    if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float tiny = static_cast<float>(fraction) * 0x1p-24F;  // subnormal
    return sign ? -tiny : tiny;
  }
  static Float load_f16(const std::uint16_t* from) {
    return each<Float>([=](int i) { return from_f16(from[i]); });
  }
  static Float load_bf16(const std::uint16_t* from) {
    return each<Float>([=](int i) { return from_bits(std::uint32_t{from[i]} << 16); });
  }
  static Float even_bf16(const std::uint16_t* from) {
    return each<Float>([=](int i) { return from_bits(std::uint32_t{from[2 * i]} << 16); });
  }
  static Float odd_bf16(const std::uint16_t* from) {
    return each<Float>([=](int i) { return from_bits(std::uint32_t{from[2 * i + 1]} << 16); });
  }

  static Int start8(std::int32_t) {
    return each<Int>([](int) { return 0; });
  }
  static Int start4(std::int32_t) { return start8(0); }

  template <int M, int V>
  static void dot8(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    for (int k = 0; k < 32; ++k) {
      add<M, V>(k, x, dots, [&](int o) { return static_cast<int>(codes[k / 4 * 128 + o * 4 + k % 4]); });
    }
  }
  template <int M, int V>
  static void dot4(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    for (int k = 0; k < 32; ++k) {
      const int shift = k / 4 % 2 * 4;
      add<M, V>(k, x, dots,
                [&](int o) { return static_cast<int>(codes[k / 8 * 128 + o * 4 + k % 4]) >> shift & 15; });
    }
  }

 private:
  template <int M, int V>
  static void add(int k, const std::byte* x, Int (&dots)[M][V], auto code) {
    for (int m = 0; m < M; ++m) {
      const int value = static_cast<std::int8_t>(x[(k / 4 * M + m) * 4 + k % 4]);
      for (int v = 0; v < V; ++v) {
        for (int i = 0; i < lanes; ++i) dots[m][v].at[i] += code(v * lanes + i) * value;
      }
    }
  }
};

}  // namespace

extern const PanelLoops panels_portable = panel_loops<Portable>("portable");

}  // namespace tandem::kernels
