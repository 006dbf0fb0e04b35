// AVX-512 F, BW, VL and VNNI for panel_loops.h; with BF16 where that is compiled in.
#pragma once

#include <immintrin.h>

#include "kernels/panel_loops.h"

namespace tandem::kernels {
namespace {

struct Avx512 {
  using Float = __m512;
  using Int = __m512i;
  static constexpr int lanes = 16, vectors = 2, dense_rows = 12, integer_rows = 6;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float broadcast(float v) { return _mm512_set1_ps(v); }
  static Float load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, Float v) { _mm512_storeu_ps(at, v); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
  static Int load_int(const void* at) { return _mm512_loadu_si512(at); }
  static Int broadcast_int(std::int32_t v) { return _mm512_set1_epi32(v); }

  static Float load_f16(const std::uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static Float load_bf16(const std::uint16_t* at) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static Float even_bf16(const std::uint16_t* at) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(load_int(at), 16));
  }
  static Float odd_bf16(const std::uint16_t* at) {
    return _mm512_castsi512_ps(_mm512_and_si512(load_int(at), broadcast_int(static_cast<int>(0xffff0000U))));
  }

// Intel takes the loops without (panels.cpp).
#ifdef __AVX512BF16__
  static constexpr Prefetch prefetch = prefetch_past_caches;
  static constexpr bool bf16_pairs = true;
  static Float pair_dot(Float acc, Int a, Int b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
#else
  static constexpr Prefetch prefetch = prefetch_to_second_level;
  static constexpr bool bf16_pairs = false;
#endif

  static Int start8(std::int32_t) { return _mm512_setzero_si512(); }
  static Int start4(std::int32_t) { return _mm512_setzero_si512(); }

  template <int M, int V>
  static void dot8(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
      Int w[V];
      for (int v = 0; v < V; ++v) w[v] = load_int(codes + step * 128 + v * 64);
      add_products<M, V>(w, x + step * 4 * M, dots);
    }
  }

  template <int M, int V>
  static void dot4(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    const Int low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int step = 0; step < 8; step += 2) {
      Int first[V], second[V];
      for (int v = 0; v < V; ++v) {
        const Int both = load_int(codes + step * 64 + v * 64);
        first[v] = _mm512_and_si512(both, low);
        second[v] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      }
      add_products<M, V>(first, x + step * 4 * M, dots);
      add_products<M, V>(second, x + (step + 1) * 4 * M, dots);
    }
  }

 private:
  template <int M, int V>
  static void add_products(const Int (&w)[V], const std::byte* x, Int (&dots)[M][V]) {
    for (int m = 0; m < M; ++m) {
      const Int four = broadcast_int(read<std::int32_t>(x + 4 * m));
      for (int v = 0; v < V; ++v) dots[m][v] = _mm512_dpbusd_epi32(dots[m][v], w[v], four);
    }
  }
};

}  // namespace
}  // namespace tandem::kernels
