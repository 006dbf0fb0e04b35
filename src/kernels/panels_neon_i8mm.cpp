#include "kernels/isa_neon.h"

namespace tandem::kernels {
namespace {

// USMMLA multiplies two outputs by two rows, eight inputs at once: twice SDOT's products, and codes stay
// unsigned. A pair of rows holds its sums as such squares until the group ends; a last row alone takes USDOT.
struct NeonI8mm : Neon {
  static constexpr int vectors = 2, integer_rows = 8;

  static Int start8(std::int32_t) { return vdupq_n_s32(0); }

  template <int M, int V>
  static void dot8(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    for (int step = 0; step < 8; step += 2) {
      uint8x16_t first[V], second[V];
      for (int v = 0; v < V; ++v) {
        first[v] = load_codes(codes + step * 128, v);
        second[v] = load_codes(codes + (step + 1) * 128, v);
      }
      add_products<M, V>(first, second, x + step * 4 * M, dots);
    }
  }

  template <int M, int V>
  static void dot4(const std::byte* codes, const std::byte* x, Int (&dots)[M][V]) {
    for (int step = 0; step < 8; step += 2) {
      uint8x16_t first[V], second[V];
      for (int v = 0; v < V; ++v) {
        const uint8x16_t both = load_codes(codes + step * 64, v);
        first[v] = vandq_u8(both, vdupq_n_u8(15));
        second[v] = vshrq_n_u8(both, 4);
      }
      add_products<M, V>(first, second, x + step * 4 * M, dots);
    }
  }

  // The squares of outputs 0, 1 and outputs 2, 3 become the sums of either row.
  template <int M, int V>
  static void part_rows(Int (&dots)[M][V]) {
    for (int m = 0; m + 1 < M; m += 2) {
      for (int v = 0; v < V; ++v) {
        const Int low = dots[m][v], high = dots[m + 1][v];
        dots[m][v] = vuzp1q_s32(low, high);
        dots[m + 1][v] = vuzp2q_s32(low, high);
      }
    }
  }

 private:
  static int32x4_t load_rows(const std::byte* at) {
    return vld1q_s32(reinterpret_cast<const std::int32_t*>(at));
  }

  // Four inputs of each row at `at`, the next four at `next`: eight of two rows a vector.
  template <int M>
  static void pair_rows(const std::byte* at, const std::byte* next, int8x16_t (&pairs)[M / 2]) {
    for (int m = 0; m + 3 < M; m += 4) {
      const int32x4_t a = load_rows(at + 4 * m), b = load_rows(next + 4 * m);
      pairs[m / 2] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
      pairs[m / 2 + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
    }
    if constexpr (M % 4 >= 2) {
      constexpr int m = M / 4 * 4;
      const int32x2_t a = vcreate_s32(read<std::uint64_t>(at + 4 * m)),
                      b = vcreate_s32(read<std::uint64_t>(next + 4 * m));
      pairs[m / 2] = vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(a, b), vzip2_s32(a, b)));
    }
  }

  // The codes of four inputs and of the next four.
  template <int M, int V>
  static void add_products(const uint8x16_t (&first)[V], const uint8x16_t (&second)[V], const std::byte* x,
                           Int (&dots)[M][V]) {
    const std::byte* next = x + 4 * M;
    if constexpr (M > 1) {
      int8x16_t pairs[M / 2];
      pair_rows<M>(x, next, pairs);
      for (int v = 0; v < V; ++v) {
        const uint32x4_t a = vreinterpretq_u32_u8(first[v]), b = vreinterpretq_u32_u8(second[v]);
        const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(a, b));   // eight inputs of outputs 0, 1
        const uint8x16_t high = vreinterpretq_u8_u32(vzip2q_u32(a, b));  // and of outputs 2, 3
        for (int m = 0; m + 1 < M; m += 2) {
          dots[m][v] = vusmmlaq_s32(dots[m][v], low, pairs[m / 2]);
          dots[m + 1][v] = vusmmlaq_s32(dots[m + 1][v], high, pairs[m / 2]);
        }
      }
    }
    if constexpr (M % 2 == 1) {
      const auto four = [](const std::byte* at) {
        return vreinterpretq_s8_s32(vdupq_n_s32(read<std::int32_t>(at)));
      };
      const int8x16_t row = four(x + 4 * (M - 1)), later = four(next + 4 * (M - 1));
      for (int v = 0; v < V; ++v) {
        dots[M - 1][v] = vusdotq_s32(dots[M - 1][v], first[v], row);
        dots[M - 1][v] = vusdotq_s32(dots[M - 1][v], second[v], later);
      }
    }
  }
};

}  // namespace

extern const PanelLoops panels_neon_i8mm = panel_loops<NeonI8mm>("neon_i8mm");

}  // namespace tandem::kernels
