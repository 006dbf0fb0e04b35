// Loops over rows of floats in plain C++, which each panels_*.cpp compiles for its instruction set. Sums run
// in 16 lanes, element i in lane i % 16, and the lanes are added in one order, so that every instruction set
// gives the same bits. No function of the standard library, as in panel_loops.h.
#pragma once

#include "kernels/panels.h"

namespace tandem::kernels {

namespace {

inline constexpr int sum_lanes = 16;

inline float add_lanes(const float (&lanes)[sum_lanes]) {
  float sums[sum_lanes];
  for (int i = 0; i < sum_lanes; ++i) sums[i] = lanes[i];
  for (int width = sum_lanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}

// e^v within 2^-22, of v within ±87; beyond, of the nearer bound. NaN stays NaN.
[[gnu::always_inline]] inline float exponential(float v) {
  constexpr float log2_e = 1.44269504F, magic = 12582912.0F;           // 1.5 * 2^23
  constexpr float ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;  // their sum is ln 2
  v = v < -87.0F ? -87.0F : v;
  v = v > 87.0F ? 87.0F : v;
  const float shifted = __builtin_fmaf(v, log2_e, magic), n = shifted - magic;
  const float r = __builtin_fmaf(n, -ln2_low, __builtin_fmaf(n, -ln2_high, v));
  float p = 1.0F / 5040;  // Taylor: |r| <= ln 2 / 2
  p = __builtin_fmaf(p, r, 1.0F / 720);
  p = __builtin_fmaf(p, r, 1.0F / 120);
  p = __builtin_fmaf(p, r, 1.0F / 24);
  p = __builtin_fmaf(p, r, 1.0F / 6);
  p = __builtin_fmaf(p, r, 0.5F);
  p = __builtin_fmaf(p, r, 1.0F);
  p = __builtin_fmaf(p, r, 1.0F);
  const auto bits = __builtin_bit_cast(std::uint32_t, p) + (__builtin_bit_cast(std::uint32_t, shifted) << 23);
  return __builtin_bit_cast(float, bits) + (v - v);
}

inline float softmax(float* scores, int first, int end, int count, float scale, Softmax& state) {
  constexpr float lowest = -__builtin_huge_valf();
  for (int i = 0; i < first; ++i) scores[i] = lowest;
  for (int i = end; i < count; ++i) scores[i] = lowest;
  float tops[sum_lanes];
  for (float& top : tops) top = lowest;
  for (int i = 0; i < count; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) {
      scores[i + l] *= scale;
      tops[l] = scores[i + l] > tops[l] ? scores[i + l] : tops[l];
    }
  }
  float top = state.top;
  for (const float t : tops) top = t > top ? t : top;
  float lanes[sum_lanes] = {};
  for (int i = 0; i < count; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) {
      const float score = scores[i + l], power = exponential(score - top);
      scores[i + l] = score == lowest ? 0.0F : power;
      lanes[l] += scores[i + l];
    }
  }
  const float factor = state.top == lowest ? 0.0F : exponential(state.top - top);
  state.top = top;
  state.sum = __builtin_fmaf(state.sum, factor, add_lanes(lanes));
  return factor;
}

inline void rms_norm(const float* x, const float* weight, std::int64_t size, float eps, float* y) {
  float lanes[sum_lanes] = {};
  std::int64_t i = 0;
  for (; i + sum_lanes <= size; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) lanes[l] = __builtin_fmaf(x[i + l], x[i + l], lanes[l]);
  }
  for (int l = 0; i + l < size; ++l) lanes[l] = __builtin_fmaf(x[i + l], x[i + l], lanes[l]);
  const float inverse = 1.0F / __builtin_sqrtf(add_lanes(lanes) / static_cast<float>(size) + eps);
  for (i = 0; i < size; ++i) y[i] = x[i] * inverse * weight[i];
}

inline void silu_multiply(const float* gate, const float* up, std::int64_t size, float* y) {
  for (std::int64_t i = 0; i < size; ++i) y[i] = gate[i] / (1.0F + exponential(-gate[i])) * up[i];
}

// The lanes' sum of term(i) over i < size.
template <class Term>
inline float sum_of(std::int64_t size, Term term) {
  float lanes[sum_lanes] = {};
  std::int64_t i = 0;
  for (; i + sum_lanes <= size; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) lanes[l] += term(i + l);
  }
  for (int l = 0; i + l < size; ++l) lanes[l] += term(i + l);
  return add_lanes(lanes);
}

inline void rms_norm_gradient(const float* x, const float* weight, const float* dy, std::int64_t size,
                              float eps, float* dx, float* dweight) {
  const auto count = static_cast<float>(size);
  const float squares = sum_of(size, [=](std::int64_t i) { return x[i] * x[i]; });
  const float along = sum_of(size, [=](std::int64_t i) { return weight[i] * dy[i] * x[i]; });
  const float inverse = 1.0F / __builtin_sqrtf(squares / count + eps);
  const float back = inverse * inverse * inverse * along / count;
  for (std::int64_t i = 0; i < size; ++i) dx[i] = inverse * weight[i] * dy[i] - back * x[i];
  if (!dweight) return;
  for (std::int64_t i = 0; i < size; ++i) dweight[i] += dy[i] * x[i] * inverse;
}

inline void silu_multiply_gradient(const float* gate, const float* up, const float* dy, std::int64_t size,
                                   float* dgate, float* dup) {
  for (std::int64_t i = 0; i < size; ++i) {
    const float sigmoid = 1.0F / (1.0F + exponential(-gate[i]));
    dup[i] = dy[i] * gate[i] * sigmoid;
    dgate[i] = dy[i] * up[i] * sigmoid * (1.0F + gate[i] * (1.0F - sigmoid));
  }
}

inline float dot(const float* a, const float* b, std::int64_t size) {
  return sum_of(size, [=](std::int64_t i) { return a[i] * b[i]; });
}

inline Softmax log_sum(const float* x, std::int64_t size) {
  float tops[sum_lanes];
  for (float& top : tops) top = x[0];
  std::int64_t i = 0;
  for (; i + sum_lanes <= size; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) tops[l] = x[i + l] > tops[l] ? x[i + l] : tops[l];
  }
  for (; i < size; ++i) tops[0] = x[i] > tops[0] ? x[i] : tops[0];
  float top = tops[0];
  for (const float t : tops) top = t > top ? t : top;
  return {top, sum_of(size, [=](std::int64_t k) { return exponential(x[k] - top); })};
}

inline void scaled_power(const float* x, float log_sum, float factor, std::int64_t size, float* y) {
  for (std::int64_t i = 0; i < size; ++i) y[i] = exponential(x[i] - log_sum) * factor;
}

inline void adamw(AdamwNumbers<const float> before, const float* gradient, const AdamwStep& step,
                  std::int64_t size, AdamwNumbers<float> after) {
  float* __restrict value = after.value, * __restrict mean = after.mean, * __restrict square = after.square;
  const float rest1 = 1 - step.beta1, rest2 = 1 - step.beta2;
  for (std::int64_t i = 0; i < size; ++i) {
    mean[i] = step.beta1 * before.mean[i] + rest1 * gradient[i];
    square[i] = step.beta2 * before.square[i] + rest2 * (gradient[i] * gradient[i]);
    const float size_of = __builtin_sqrtf(step.square_scale * square[i]) + step.eps;
    value[i] = step.keep * before.value[i] - step.rate * mean[i] / size_of;
  }
}

inline float largest_magnitude(const float* x, int count) {
  float tops[sum_lanes] = {};
  for (int i = 0; i < count; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) {
      const float size = __builtin_fabsf(x[i + l]);
      tops[l] = size > tops[l] ? size : tops[l];
    }
  }
  float top = 0;
  for (const float t : tops) top = t > top ? t : top;
  return top;
}

// In [0, 1). Vectors are made floats from signed integers faster.
inline float rounding_noise(std::uint32_t place, std::uint32_t key) {
  std::uint32_t x = place * noise_spread ^ key;
  x = (x ^ x >> 16) * noise_first;
  x = (x ^ x >> 15) * noise_second;
  return static_cast<float>(static_cast<std::int32_t>((x ^ x >> 16) >> 8)) * 0x1p-24F;
}

// What eight_bits.cpp does with MLX's operations, of a number.
inline float fourth_power(float root) { return (root * root) * (root * root); }
inline float root_of(float size, float largest) {
  return __builtin_sqrtf(__builtin_sqrtf(size / (largest > 0 ? largest : 1.0F)));
}
inline float unpack_signed(std::int8_t code, float largest) {
  const float root = static_cast<float>(code) * (1 / signed_steps);
  const float size = fourth_power(root) * largest;
  return root < 0 ? -size : size;
}
inline float unpack_unsigned(std::uint8_t code, float largest) {
  return fourth_power((static_cast<float>(code) + 1) * (1 / unsigned_steps)) * largest;
}
inline std::int8_t pack_signed(float x, float largest, float noise) {
  const float steps = root_of(__builtin_fabsf(x), largest) * signed_steps + noise;
  const auto code = static_cast<std::int32_t>(steps < signed_steps ? steps : signed_steps);
  return static_cast<std::int8_t>(x < 0 ? -code : code);
}
inline std::uint8_t pack_unsigned(float x, float largest, float noise) {
  float steps = root_of(x, largest) * unsigned_steps + noise;
  steps = steps > 1 ? steps : 1.0F;
  steps = steps < unsigned_steps ? steps : unsigned_steps;
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(steps) - 1);
}

// A block, or its first numbers.
inline void adamw_of_block(AdamwBlocksBefore before, const float* gradient, const AdamwStep& step,
                           std::uint32_t key, std::uint32_t place, int size, AdamwBlocksAfter after) {
  float old_mean[optimizer_block], old_square[optimizer_block];
  for (int i = 0; i < size; ++i) {
    const float root = unpack_unsigned(before.roots[i], *before.largest_root);
    old_mean[i] = unpack_signed(before.means[i], *before.largest_mean);
    old_square[i] = root * root;
  }
  float mean[optimizer_block] = {}, square[optimizer_block] = {}, root[optimizer_block];
  adamw({before.value, old_mean, old_square}, gradient, step, size, {after.value, mean, square});
  for (int i = 0; i < optimizer_block; ++i) root[i] = __builtin_sqrtf(square[i]);
  const float largest_mean = largest_magnitude(mean, optimizer_block),
              largest_root = largest_magnitude(root, optimizer_block);
  *after.largest_mean = largest_mean;
  *after.largest_root = largest_root;
  for (int i = 0; i < optimizer_block; ++i) {
    const float noise = rounding_noise(place + static_cast<std::uint32_t>(i), key);
    after.means[i] = pack_signed(mean[i], largest_mean, noise);
    after.roots[i] = pack_unsigned(root[i], largest_root, noise);
  }
}

inline void adamw_in_8_bit(AdamwBlocksBefore before, const float* gradient, const AdamwStep& step,
                           std::uint32_t key, std::int64_t first, std::int64_t end, AdamwBlocksAfter after) {
  for (; first < end; first += optimizer_block) {
    const std::int64_t left = end - first;
    adamw_of_block(before.from(first), gradient + first, step, key, static_cast<std::uint32_t>(first),
                   static_cast<int>(left < optimizer_block ? left : optimizer_block), after.from(first));
  }
}

inline void rotate(const float* x, const float* cosines, const float* sines, int dims, int size, float* y) {
  const int half = dims / 2;
  for (int i = 0; i < half; ++i) {
    y[i] = x[i] * cosines[i] - x[i + half] * sines[i];
    y[i + half] = x[i + half] * cosines[i] + x[i] * sines[i];
  }
  for (int i = dims; i < size; ++i) y[i] = x[i];
}

// 0, or NaN where an element is not finite.
inline float poison_of(const float* x, int count) {
  float lanes[sum_lanes] = {};
  for (int i = 0; i < count; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) lanes[l] += x[i + l] * 0.0F;
  }
  return add_lanes(lanes);
}

inline float from_bf16(std::uint16_t value) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(value) << 16);
}

inline void unpack_rows(const std::int8_t* codes, const std::uint16_t* scales, int rows, float* y) {
  for (int row = 0; row < rows; ++row) {
    const float scale = from_bf16(scales[row]);
    for (int o = 0; o < panel_outputs; ++o) {
      y[row * panel_outputs + o] = static_cast<float>(codes[row * panel_outputs + o]) * scale;
    }
  }
}

inline void unpack_columns(const std::int8_t* codes, const std::uint16_t* scales, int rows, float* y) {
  float wide[panel_outputs];
  for (int o = 0; o < panel_outputs; ++o) wide[o] = from_bf16(scales[o]);
  for (int row = 0; row < rows; ++row) {
    for (int o = 0; o < panel_outputs; ++o) {
      y[row * panel_outputs + o] = static_cast<float>(codes[row * panel_outputs + o]) * wide[o];
    }
  }
}

// Four rows and columns at a time, by shuffles.
inline void turn(const float* from, std::int64_t from_stride, std::int64_t rows, float* y,
                 std::int64_t y_stride) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  std::int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    for (std::int64_t column = 0; column < panel_outputs; column += 4) {
      const float* at = from + row * from_stride + column;
      Four in[4];
      for (int i = 0; i < 4; ++i) __builtin_memcpy(&in[i], at + i * from_stride, sizeof(Four));
      const Four low01 = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5),
                 high01 = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7),
                 low23 = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5),
                 high23 = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
      const Four out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                           __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                           __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                           __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      float* to = y + column * y_stride + row;
      for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * y_stride, &out[i], sizeof(Four));
    }
  }
  for (; row < rows; ++row) {
    for (std::int64_t column = 0; column < panel_outputs; ++column)
      y[column * y_stride + row] = from[row * from_stride + column];
  }
}

// By squares of two inputs and two outputs, 64 bits each, four by four of them at a time.
inline void turn_pairs(const std::uint16_t* from, std::uint16_t* to) {
  typedef std::uint64_t Four __attribute__((vector_size(32)));
  typedef std::uint16_t Halves __attribute__((vector_size(32)));
  constexpr int squares = panel_outputs / 2, row = 2 * panel_outputs;
  for (int k = 0; k < squares; k += 4) {
    for (int o = 0; o < squares; o += 4) {
      Four in[4];
      for (int i = 0; i < 4; ++i) __builtin_memcpy(&in[i], from + (k + i) * row + o * 4, sizeof(Four));
      const Four low01 = __builtin_shufflevector(in[0], in[1], 0, 4, 2, 6),
                 high01 = __builtin_shufflevector(in[0], in[1], 1, 5, 3, 7),
                 low23 = __builtin_shufflevector(in[2], in[3], 0, 4, 2, 6),
                 high23 = __builtin_shufflevector(in[2], in[3], 1, 5, 3, 7);
      const Four out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                           __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                           __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                           __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) {
        Halves halves;
        __builtin_memcpy(&halves, &out[i], sizeof halves);
        halves =
            __builtin_shufflevector(halves, halves, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
        __builtin_memcpy(to + (o + i) * row + k * 4, &halves, sizeof halves);
      }
    }
  }
}

constexpr VectorLoops vector_loops{softmax,
                                   rms_norm,
                                   silu_multiply,
                                   rms_norm_gradient,
                                   silu_multiply_gradient,
                                   dot,
                                   log_sum,
                                   scaled_power,
                                   adamw,
                                   adamw_in_8_bit,
                                   rotate,
                                   unpack_rows,
                                   unpack_columns,
                                   turn,
                                   turn_pairs};

}  // namespace
}  // namespace tandem::kernels
