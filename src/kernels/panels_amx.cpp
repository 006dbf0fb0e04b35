// AVX-512, and bfloat16 by AMX's tiles (Intel 64 and IA-32 Architectures Software Developer's Manual, volume
// 1, chapter 18): a panel is what they take as the right side as it lies, rows of x are row-major as the
// left.
#include "kernels/isa_avx512.h"

namespace tandem::kernels {
namespace {

constexpr std::int64_t tile_height = 16;  // rows of x, or pairs of inputs
constexpr std::int64_t tile_bytes = 64;   // of a row: 32 inputs, or 16 outputs
constexpr std::int64_t pair_bytes = 4 * panel_outputs;

// What stands at `memory` is written by now: compilers do not know that the tile instructions read it.
inline void written(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

// What LDTILECFG reads. Tiles 0 to 3 are sums, 4 and 5 rows of x, 6 and 7 the panel's two halves.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// Up to 32 rows of x, and a number of pairs up to 16.
struct TileShape {
  std::int64_t rows = 0, pairs = 0;

  bool operator==(const TileShape&) const = default;
  std::int64_t upper() const { return smaller(rows, tile_height); }
  std::int64_t lower() const { return rows - upper(); }
};

void configure(const TileShape& shape) {
  TileConfig config;
  const auto set = [&](int tile, std::int64_t rows, std::int64_t bytes) {
    config.rows[tile] = static_cast<std::uint8_t>(rows);
    config.row_bytes[tile] = static_cast<std::uint16_t>(rows > 0 ? bytes : 0);
  };
  for (int i = 0; i < 2; ++i) {
    set(i, shape.upper(), tile_bytes);
    set(2 + i, shape.lower(), tile_bytes);
    set(6 + i, shape.pairs, tile_bytes);
  }
  set(4, shape.upper(), 4 * shape.pairs);
  set(5, shape.lower(), 4 * shape.pairs);
  written(&config);
  _tile_loadconfig(&config);
}

// y [rows][stride] of one panel (+)= x [rows][x_bytes] times `steps` of its tiles.
template <bool two>
void add_tiles(const std::byte* x, std::int64_t x_bytes, const std::byte* panel, std::int64_t steps, float* y,
               std::int64_t stride, bool starts, bool asks_ahead) {
  const std::int64_t y_bytes = stride * 4;
  written(y);
  written(x);
  if (starts) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (two) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, y, y_bytes);
    _tile_loadd(1, y + 16, y_bytes);
    if constexpr (two) {
      _tile_loadd(2, y + tile_height * stride, y_bytes);
      _tile_loadd(3, y + tile_height * stride + 16, y_bytes);
    }
  }
  for (std::int64_t step = 0; step < steps; ++step, x += tile_bytes, panel += tile_height * pair_bytes) {
    if (asks_ahead) ahead<Avx512, 1>(panel, tile_height * pair_bytes);
    _tile_loadd(4, x, x_bytes);
    _tile_loadd(6, panel, pair_bytes);
    _tile_loadd(7, panel + tile_bytes, pair_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (two) {
      _tile_loadd(5, x + tile_height * x_bytes, x_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, y, y_bytes);
  _tile_stored(1, y + 16, y_bytes);
  if constexpr (two) {
    _tile_stored(2, y + tile_height * stride, y_bytes);
    _tile_stored(3, y + tile_height * stride + 16, y_bytes);
  }
}

// One row times two whole panels side by side, each a stream of its own, without tiles, which read weights
// from memory a fifth slower (Sapphire Rapids: 14 against 17 GB/s): the sums that they give, of even and of
// odd inputs by themselves within 32 inputs.
void multiply_row_as_tiles(const Multiply& args, std::int64_t index, std::int64_t apart) {
  constexpr int vectors = panel_outputs / Avx512::lanes;
  const auto* x = reinterpret_cast<const std::uint16_t*>(args.prepared);
  const std::byte* panels[2] = {args.panels + index * args.panel_stride,
                                args.panels + (index + apart) * args.panel_stride};
  __m512 sums[2][vectors];
  for (auto& panel : sums)
    for (auto& sum : panel) sum = Avx512::zero();
  for (std::int64_t k = 0; k < args.shape.in; k += 2 * tile_height, x += 2 * tile_height) {
    __m512 even[2][vectors], odd[2][vectors];
    for (int p = 0; p < 2; ++p)
      for (int v = 0; v < vectors; ++v) even[p][v] = odd[p][v] = Avx512::zero();
    for (std::int64_t pair = 0; pair < tile_height; ++pair) {
      const auto both = read<std::uint32_t>(x + 2 * pair);
      const __m512 first = Avx512::broadcast(__builtin_bit_cast(float, both << 16)),
                   second = Avx512::broadcast(__builtin_bit_cast(float, both & 0xffff0000U));
      for (int p = 0; p < 2; ++p) {
        if (pair % 4 == 0) ahead<Avx512, 1>(panels[p], 4 * pair_bytes);
        for (int v = 0; v < vectors; ++v) {
          const auto* w = reinterpret_cast<const std::uint16_t*>(panels[p]) + 2 * v * Avx512::lanes;
          even[p][v] = Avx512::fma(first, Avx512::even_bf16(w), even[p][v]);
          odd[p][v] = Avx512::fma(second, Avx512::odd_bf16(w), odd[p][v]);
        }
        panels[p] += pair_bytes;
      }
    }
    for (int p = 0; p < 2; ++p)
      for (int v = 0; v < vectors; ++v) sums[p][v] += even[p][v] + odd[p][v];
  }
  for (int p = 0; p < 2; ++p)
    for (int v = 0; v < vectors; ++v)
      Avx512::store(args.y + (index + p * apart) * panel_outputs + v * Avx512::lanes, sums[p][v]);
}

class TileProduct {
 public:
  explicit TileProduct(const Multiply& args)
      : args_(args),
        pairs_(even(args.shape.in) / 2),
        x_bytes_(prepared_bytes(Activation::bf16, args.shape.in, 0)) {}

  // Whole tiles of inputs, then what is left. The order of the sums is the same for
  // any number of rows.
  void add_panel(std::int64_t index) {
    const std::int64_t whole = pairs_ / tile_height, rest = pairs_ % tile_height;
    if (whole > 0) add_inputs(index, 0, tile_height, whole);
    if (rest > 0) add_inputs(index, whole * tile_height, rest, 1);
  }

 private:
  void add_inputs(std::int64_t index, std::int64_t first_pair, std::int64_t pairs, std::int64_t steps) {
    const std::int64_t outputs = smaller(panel_outputs, args_.shape.out - index * panel_outputs);
    const std::byte* panel = args_.panels + index * args_.panel_stride + first_pair * pair_bytes;
    const bool starts = first_pair == 0 && !args_.adds;
    for (std::int64_t row = 0; row < args_.rows; row += 2 * tile_height) {
      const TileShape shape{smaller(2 * tile_height, args_.rows - row), pairs};
      if (shape != shape_) configure(shape_ = shape);
      const std::byte* x = args_.prepared + row * x_bytes_ + first_pair * 4;
      float* y = args_.y + row * args_.stride + index * panel_outputs;
      if (outputs == panel_outputs) {
        add(x, panel, steps, y, args_.stride, starts);
        continue;
      }
      float sums[2 * tile_height * panel_outputs] = {};
      const auto copy = [&](bool in) {
        for (std::int64_t r = 0; r < shape.rows; ++r) {
          for (std::int64_t o = 0; o < outputs; ++o) {
            float &sum = sums[r * panel_outputs + o], &result = y[r * args_.stride + o];
            (in ? sum : result) = in ? result : sum;
          }
        }
      };
      if (!starts) copy(true);
      add(x, panel, steps, sums, panel_outputs, starts);
      copy(false);
    }
  }

  void add(const std::byte* x, const std::byte* panel, std::int64_t steps, float* y, std::int64_t stride,
           bool starts) const {
    const bool asks_ahead = args_.rows <= 2;
    if (shape_.lower() > 0) {
      add_tiles<true>(x, x_bytes_, panel, steps, y, stride, starts, asks_ahead);
    } else {
      add_tiles<false>(x, x_bytes_, panel, steps, y, stride, starts, asks_ahead);
    }
  }

  const Multiply& args_;
  std::int64_t pairs_, x_bytes_;
  TileShape shape_;
};

void multiply_by_tiles(const Multiply& args, std::int64_t first_panel, std::int64_t end_panel) {
  if (args.shape.format != Format::bf16) return multiply<Avx512>(args, first_panel, end_panel);
  if (args.rows == 1 && !args.adds && args.shape.in % (2 * tile_height) == 0) {
    const std::int64_t half = (smaller(end_panel, args.shape.out / panel_outputs) - first_panel) / 2;
    for (std::int64_t p = first_panel; p < first_panel + half; ++p) multiply_row_as_tiles(args, p, half);
    if (half > 0) first_panel += 2 * half;
  }
  TileProduct product(args);
  for (std::int64_t p = first_panel; p < end_panel; ++p) product.add_panel(p);
  _tile_release();
}

// bfloat16 row by row, whatever the tile.
void prepare_for_tiles(const Prepare& args, std::int64_t first_tile, std::int64_t end_tile) {
  if (args.activation != Activation::bf16) return prepare<Avx512>(args, first_tile, end_tile);
  const std::int64_t end = smaller(args.rows, end_tile * Avx512::dense_rows), width = even(args.in);
  for (std::int64_t row = first_tile * Avx512::dense_rows; row < end; ++row) {
    const float* x = args.x + row * args.stride;
    auto* to = reinterpret_cast<std::uint16_t*>(args.prepared) + row * width;
    for (std::int64_t k = 0; k < args.in; ++k) to[k] = to_bf16(x[k]);
    if (args.in % 2 != 0) to[args.in] = 0;
  }
}

constexpr PanelLoops by_tiles() {
  PanelLoops loops = panel_loops<Avx512>("amx");
  loops.bf16_pairs = true;
  loops.prepare = prepare_for_tiles;
  loops.multiply = multiply_by_tiles;
  return loops;
}

}  // namespace

extern const PanelLoops panels_amx = by_tiles();

}  // namespace tandem::kernels
