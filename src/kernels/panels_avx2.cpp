#include <immintrin.h>

#include "kernels/panel_loops.h"

namespace tandem::kernels {
namespace {

struct Avx2 {
  using Float = __m256;
  using Int = __m256i;
  static constexpr int lanes = 8, vectors = 2, dense_rows = 6, integer_rows = 4;
  static constexpr bool bf16_pairs = false;
  static constexpr Prefetch prefetch = prefetch_past_caches;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float broadcast(float v) { return _mm256_set1_ps(v); }
  static Float load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, Float v) { _mm256_storeu_ps(at, v); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  static Int load_int(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
  static Int broadcast_int(std::int32_t v) { return _mm256_set1_epi32(v); }

  static Float load_f16(const std::uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static Float load_bf16(const std::uint16_t* at) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Float even_bf16(const std::uint16_t* at) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(load_int(at), 16));
  }
  static Float odd_bf16(const std::uint16_t* at) {
    return _mm256_castsi256_ps(_mm256_and_si256(load_int(at), broadcast_int(static_cast<int>(0xffff0000U))));
  }

  // vpmaddubsw would overflow with codes up to 255, so 128 is taken from them and given back here.
  static Int start8(std::int32_t sum) { return broadcast_int(128 * sum); }
  static Int start4(std::int32_t) { return _mm256_setzero_si256(); }

  template <int M, int V>
  static void dot8(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    const Int ones = _mm256_set1_epi16(1), middle = _mm256_set1_epi8(-128);
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
      Int w[V], magnitude[V];
      for (int v = 0; v < V; ++v) {
        w[v] = _mm256_xor_si256(load_int(codes + step * 128 + v * 32), middle);
        magnitude[v] = _mm256_abs_epi8(w[v]);
      }
      for (int m = 0; m < M; ++m) {
        const Int four = broadcast_int(read<std::int32_t>(x + (step * M + m) * 4));
        for (int v = 0; v < V; ++v) {
          const Int pairs = _mm256_maddubs_epi16(magnitude[v], _mm256_sign_epi8(four, w[v]));
          dots[m][v] = _mm256_add_epi32(dots[m][v], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
  }

  // Eight sums of two products of at most 15 * 127 fit 16 bits.
  template <int M, int V>
  static void dot4(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    const Int low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    Int sums[M][V];
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) sums[m][v] = _mm256_setzero_si256();
    }
#pragma GCC unroll 4
    for (int step = 0; step < 8; step += 2) {
      Int both[V];
      for (int v = 0; v < V; ++v) both[v] = load_int(codes + step * 64 + v * 32);
      for (int half = 0; half < 2; ++half) {
        for (int v = 0; v < V; ++v) {
          const Int w = _mm256_and_si256(half ? _mm256_srli_epi16(both[v], 4) : both[v], low);
          for (int m = 0; m < M; ++m) {
            const Int four = broadcast_int(read<std::int32_t>(x + ((step + half) * M + m) * 4));
            sums[m][v] = _mm256_add_epi16(sums[m][v], _mm256_maddubs_epi16(w, four));
          }
        }
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) {
        dots[m][v] = _mm256_add_epi32(dots[m][v], _mm256_madd_epi16(sums[m][v], ones));
      }
    }
  }
};

struct Avx2OfIntel : Avx2 {
  static constexpr Prefetch prefetch = prefetch_to_second_level;
};

}  // namespace

extern const PanelLoops panels_avx2 = panel_loops<Avx2>("avx2");
extern const PanelLoops panels_avx2_of_intel = panel_loops<Avx2OfIntel>("avx2");

}  // namespace tandem::kernels
