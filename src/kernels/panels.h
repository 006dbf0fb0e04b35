// Packed matrices and the loops over them. No MLX here and, in the loops, no function of the standard
// library: an inline one compiled with AVX could be linked into code that must run without.
//
// A matrix [out, in] lies in panels of 32 outputs, one after the other, so that a product reads one
// sequential stream; the last panel is filled up with zeros. Within a panel, o is the output, k the input:
//   f32, f16   [in][32 o]
//   bf16       [in / 2][32 o][2 k]: pairs, as AVX512_BF16 multiplies them; odd `in` is padded
//   q8, q4     for each group of inputs: scales [32 o], biases [32 o] of ScaleType, then the codes:
//     q8       [group / 4][32 o][4 k], a byte each
//     q4       [group / 8][32 o][4 k]: a byte's low half is of the first four inputs, its high half of
//              the next four
// A code c stands for scale * c + bias, MLX's affine quantisation.
//
// The order of every sum is fixed, so a result depends neither on the rows computed with it, nor on the cut
// into blocks, nor on the instruction set (but for bf16 on AVX512_BF16 and AMX, whose sums of pairs are
// the hardware's own):
//   dense      acc = fma(x_k, w_k, acc), k ascending
//   quantised  x becomes int8 by group (largest magnitude = 127); groups ascending,
//              acc = fma(float(sum of codes · x8) * scale, x_scale, acc);
//              acc = fma(bias, x_scale * sum of x8, acc)
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem::kernels {

inline constexpr int panel_outputs = 32;

enum class Format : std::uint8_t { f32, f16, bf16, q8, q4 };
enum class ScaleType : std::uint8_t { f32, f16, bf16 };

struct PanelShape {
  std::int64_t out = 0;
  std::int64_t in = 0;
  Format format = Format::f32;
  ScaleType scale = ScaleType::f16;  // of q8 and q4
  int group = 0;                     // inputs that share a scale: 32, 64 or 128; 0 for dense formats
};

constexpr bool is_quantised(Format format) { return format == Format::q8 || format == Format::q4; }
constexpr std::int64_t scale_bytes(ScaleType type) { return type == ScaleType::f32 ? 4 : 2; }
constexpr std::int64_t panels_of(const PanelShape& shape) {
  return (shape.out + panel_outputs - 1) / panel_outputs;
}
// Bytes of the inputs of one group (quantised) or of two inputs (dense) of a panel.
constexpr std::int64_t unit_bytes(const PanelShape& shape) {
  switch (shape.format) {
    case Format::f32:
      return 2 * 4 * panel_outputs;
    case Format::f16:
    case Format::bf16:
      return 2 * 2 * panel_outputs;
    case Format::q8:
      return panel_outputs * (2 * scale_bytes(shape.scale) + shape.group);
    case Format::q4:
      return panel_outputs * (2 * scale_bytes(shape.scale) + shape.group / 2);
  }
  return 0;
}
constexpr std::int64_t unit_inputs(const PanelShape& shape) { return shape.group > 0 ? shape.group : 2; }
constexpr std::int64_t panel_bytes(const PanelShape& shape) {
  return (shape.in + unit_inputs(shape) - 1) / unit_inputs(shape) * unit_bytes(shape);
}

// How the rows of x are given to the loops. Rows come in tiles of tile_rows(), the last one
// smaller; a tile of m rows is
//   f32   [in][m] float
//   bf16  [in / 2][m][2] bfloat16, rounded to nearest even; for AMX [in / 32][m][32], and behind
//         those [m] of what is left, odd `in` padded
//   bf16_x3  three bfloat16 whose sum a float is, by truncation: for AMX [in / 32][3][m][32], and behind
//         those [3][m] of what is left
//   int8  [in / 4][m][4] int8, then by group: scales [groups][m] float, scale * sum of x8 [groups][m] float,
//         sum of x8 [groups][m] int32
enum class Activation : std::uint8_t { f32, bf16, bf16_x3, int8 };

constexpr std::int64_t even(std::int64_t n) { return n + (n & 1); }
// Bytes of one prepared row.
constexpr std::int64_t prepared_bytes(Activation activation, std::int64_t in, int group) {
  switch (activation) {
    case Activation::f32:
      return even(in) * 4;
    case Activation::bf16:
      return even(in) * 2;
    case Activation::bf16_x3:
      return even(in) * 6;
    case Activation::int8:
      return in + in / group * 12;
  }
  return 0;
}

struct Prepare {
  const float* x;  // row r's input k at x[r * stride + k]
  std::int64_t stride;
  std::int64_t rows;
  std::int64_t in;
  Activation activation;
  int group;            // for int8
  std::byte* prepared;  // [rows * prepared_bytes]
};

struct Multiply {
  PanelShape shape;
  const std::byte* panels;
  std::int64_t panel_stride;  // bytes from a panel to the next
  const std::byte* prepared;
  float* y;  // row r's output o stands at y[r * stride + o]
  std::int64_t stride;
  std::int64_t rows;
  bool adds = false;  // to what stands in y
};

// The running state of a softmax over blocks (Milakov and Gimelshein, arXiv:1805.02867).
struct Softmax {
  float top;
  float sum;
};

// A step of AdamW (Loshchilov and Hutter, arXiv:1711.05101): mean = beta1 mean + (1 - beta1) g, square =
// beta2 square + (1 - beta2) g², value = keep · value - rate · mean / (sqrt(square_scale · square) + eps).
struct AdamwStep {
  float beta1, beta2, eps;
  float keep;          // 1 - learning rate · weight decay
  float rate;          // the learning rate, corrected for the mean's start at 0
  float square_scale;  // likewise of the squares' mean
};
template <class Number>
struct AdamwNumbers {
  Number *value, *mean, *square;

  AdamwNumbers from(std::int64_t first) const { return {value + first, mean + first, square + first}; }
};

// What AdamW remembers in 8 bit (eight_bits.h): of each block of numbers the largest mean, the largest square
// root of the squares' mean, and a code for each of either. A mean's code is its sign times the steps of the
// fourth root of its share of the largest, and a square root's one less than those.
inline constexpr int optimizer_block = 256;
inline constexpr float signed_steps = 127, unsigned_steps = 256;
template <class Number, class Signed, class Unsigned>
struct AdamwBlocks {
  Number* value;
  Signed* means;
  Number* largest_mean;  // [blocks]
  Unsigned* roots;
  Number* largest_root;  // [blocks]

  AdamwBlocks from(std::int64_t first) const {  // where a block begins
    const std::int64_t block = first / optimizer_block;
    return {value + first, means + first, largest_mean + block, roots + first, largest_root + block};
  }
};
using AdamwBlocksBefore = AdamwBlocks<const float, const std::int8_t, const std::uint8_t>;
using AdamwBlocksAfter = AdamwBlocks<float, std::int8_t, std::uint8_t>;

// The constants of a hash of a number's place and a key, 24 bits of which are its noise (C. Wellons,
// "Prospecting for Hash Functions", 2018: lowbias32).
inline constexpr std::uint32_t noise_spread = 0x9e3779b1U, noise_first = 0x7feb352dU,
                               noise_second = 0x846ca68bU;

struct VectorLoops {
  // scores [count] of which [first, end) are visible become e^(score * scale - top), the others 0; count is a
  // multiple of 16. Returns by what earlier sums are to be multiplied.
  float (*softmax)(float* scores, int first, int end, int count, float scale, Softmax& state);
  // x / sqrt(mean(x²) + eps) * weight of one row.
  void (*rms_norm)(const float* x, const float* weight, std::int64_t size, float eps, float* y);
  // gate / (1 + e^-gate) * up
  void (*silu_multiply)(const float* gate, const float* up, std::int64_t size, float* y);
  // Of rms_norm by x, times dy, into dx; and by the weight, added to dweight where there is one.
  void (*rms_norm_gradient)(const float* x, const float* weight, const float* dy, std::int64_t size,
                            float eps, float* dx, float* dweight);
  // Of silu_multiply by both, times dy.
  void (*silu_multiply_gradient)(const float* gate, const float* up, const float* dy, std::int64_t size,
                                 float* dgate, float* dup);
  // Σ a · b
  float (*dot)(const float* a, const float* b, std::int64_t size);
  // The largest of x, and the sum of e^(x - largest).
  Softmax (*log_sum)(const float* x, std::int64_t size);
  // y = e^(x - log_sum) * factor
  void (*scaled_power)(const float* x, float log_sum, float factor, std::int64_t size, float* y);
  void (*adamw)(AdamwNumbers<const float> before, const float* gradient, const AdamwStep& step,
                std::int64_t size, AdamwNumbers<float> after);
  // The same of the numbers [first, end) in blocks, the last of which may not be full; `first` begins one.
  void (*adamw_in_8_bit)(AdamwBlocksBefore before, const float* gradient, const AdamwStep& step,
                         std::uint32_t key, std::int64_t first, std::int64_t end, AdamwBlocksAfter after);
  // One head: the pair (i, i + dims / 2) turned by the angle whose cosine and sine stand at i; the rest is
  // copied.
  void (*rotate)(const float* x, const float* cosines, const float* sines, int dims, int size, float* y);
  // [rows][32] int8 codes times scales in bfloat16: one a row, or one a column.
  void (*unpack_rows)(const std::int8_t* codes, const std::uint16_t* scales, int rows, float* y);
  void (*unpack_columns)(const std::int8_t* codes, const std::uint16_t* scales, int rows, float* y);
  // from [rows][from_stride], of which 32 columns become rows of y [32][y_stride].
  void (*turn)(const float* from, std::int64_t from_stride, std::int64_t rows, float* y,
               std::int64_t y_stride);
  // 32 inputs of 32 outputs of a bf16 panel, [16][32][2], as they stand in one of the matrix's other side.
  void (*turn_pairs)(const std::uint16_t* from, std::uint16_t* to);
};

// One instruction set's loops.
struct PanelLoops {
  const char* name;
  int bf16_terms;    // into which x of bf16 matrices is taken apart: 1 rounds it, 3 do not; 0: float32
  int dense_rows;    // rows of a tile
  int pair_rows;     // of bfloat16
  int integer_rows;  // rows of a tile of int8
  void (*prepare)(const Prepare& args, std::int64_t first_tile, std::int64_t end_tile);
  void (*multiply)(const Multiply& args, std::int64_t first_panel, std::int64_t end_panel);
  // What a panel's inputs [first, first + count) stand for: [count][32 outputs].
  void (*unpack)(const PanelShape& shape, const std::byte* panel, std::int64_t first, std::int64_t count,
                 float* to);
  VectorLoops vectors;
};

constexpr Activation activation_of(Format format, const PanelLoops& loops) {
  if (is_quantised(format)) return Activation::int8;
  if (format != Format::bf16 || loops.bf16_terms == 0) return Activation::f32;
  return loops.bf16_terms == 1 ? Activation::bf16 : Activation::bf16_x3;
}
constexpr int tile_rows(Activation activation, const PanelLoops& loops) {
  if (activation == Activation::bf16 || activation == Activation::bf16_x3) return loops.pair_rows;
  return activation == Activation::int8 ? loops.integer_rows : loops.dense_rows;
}

// The fastest that this processor runs, or the one of this name: portable, avx2, avx512, avx512_bf16, amx,
// amx_float32, neon, neon_i8mm. nullptr: not on this processor.
const PanelLoops* find_loops(const char* name = nullptr);

extern const PanelLoops panels_portable;
extern const PanelLoops panels_avx2;  // AVX2, FMA, F16C
extern const PanelLoops panels_avx2_of_intel;
extern const PanelLoops panels_avx512;       // AVX-512 F, BW, VL, VNNI
extern const PanelLoops panels_avx512_bf16;  // and BF16
extern const PanelLoops panels_amx;          // AVX-512 as above, and AMX of BF16
extern const PanelLoops panels_amx_float32;  // the same without rounding x
extern const PanelLoops panels_neon;         // Armv8.2 with dot product
extern const PanelLoops panels_neon_i8mm;    // and int8 matrix multiplication

}  // namespace tandem::kernels
