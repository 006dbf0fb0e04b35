// AVX-512, and bfloat16 by AMX's tiles (Intel 64 and IA-32 Architectures Software Developer's Manual, volume
// 1, chapter 18): a panel is what they take as the right side as it lies, rows of x are row-major as the
// left.
#include "kernels/isa_avx512.h"

namespace tandem::kernels {
namespace {

constexpr std::int64_t tile_height = 16;  // rows of x, or pairs of inputs
constexpr std::int64_t tile_bytes = 64;   // of a row: 32 inputs, or 16 outputs
constexpr std::int64_t pair_bytes = 4 * panel_outputs;
constexpr std::int64_t step_bytes = tile_height * pair_bytes;  // of a panel: a step is a tile's 32 inputs
constexpr std::int64_t x_bytes_in_second_level = 1 << 20;      // half of it on Sapphire Rapids
// A panel's part and that of 32 rows of x stay in the first-level cache.
constexpr std::int64_t steps_at_once(int terms) { return terms == 1 ? 8 : 4; }

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

// Of 32 rows of x the tiles of 16, one after the other along the inputs, and of each input's terms.
struct TileRows {
  const std::byte *upper, *lower;
  std::int64_t row_bytes;
};

// Prefetches what comes of a panel, some bytes of it at each step of a product.
struct PanelPrefetch {
  const std::byte* at;
  std::int64_t bytes_per_step;

  void step() {
    for (std::int64_t line = 0; line < bytes_per_step; line += 64)
      __builtin_prefetch(at + line, 0, Avx512::prefetch.locality);
    at += bytes_per_step;
  }
};

// sums [rows][32] (+)= x times `steps` of a panel's tiles.
template <bool two, int terms>
void add_tiles(TileRows x, const TileShape& shape, const std::byte* panel, std::int64_t steps, float* sums,
               bool adds, PanelPrefetch& prefetch) {
  constexpr std::int64_t sum_bytes = 4 * panel_outputs;
  float* lower = sums + tile_height * panel_outputs;
  written(sums);
  written(x.upper);
  if (adds) {
    _tile_loadd(0, sums, sum_bytes);
    _tile_loadd(1, sums + 16, sum_bytes);
    if constexpr (two) {
      _tile_loadd(2, lower, sum_bytes);
      _tile_loadd(3, lower + 16, sum_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (two) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (std::int64_t step = 0; step < steps; ++step, panel += step_bytes) {
    prefetch.step();
    _tile_loadd(6, panel, pair_bytes);
    _tile_loadd(7, panel + tile_bytes, pair_bytes);
    for (int term = 0; term < terms; ++term) {
      _tile_loadd(4, x.upper, x.row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (two) {
        _tile_loadd(5, x.lower, x.row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      x.upper += shape.upper() * x.row_bytes;
      x.lower += shape.lower() * x.row_bytes;
    }
  }
  _tile_stored(0, sums, sum_bytes);
  _tile_stored(1, sums + 16, sum_bytes);
  if constexpr (two) {
    _tile_stored(2, lower, sum_bytes);
    _tile_stored(3, lower + 16, sum_bytes);
  }
}

// One row times two whole panels side by side, each a stream of its own, without tiles, which read weights
// from memory a fifth slower (Sapphire Rapids: 14 against 17 GB/s): the sums that they give, of even and of
// odd inputs by themselves within 32 inputs, of a term after the other.
template <int terms>
void multiply_row_as_tiles(const Multiply& args, std::int64_t index, std::int64_t apart) {
  constexpr int vectors = panel_outputs / Avx512::lanes;
  const auto* x = reinterpret_cast<const std::uint16_t*>(args.prepared);
  const std::byte* panels[2] = {args.panels + index * args.panel_stride,
                                args.panels + (index + apart) * args.panel_stride};
  __m512 sums[2][vectors];
  for (auto& panel : sums)
    for (auto& sum : panel) sum = Avx512::zero();
  const auto add_term = [&](const std::uint16_t* term_x, bool asks_ahead) {
    __m512 even[2][vectors], odd[2][vectors];
    for (int p = 0; p < 2; ++p)
      for (int v = 0; v < vectors; ++v) even[p][v] = odd[p][v] = Avx512::zero();
    for (std::int64_t pair = 0; pair < tile_height; ++pair) {
      const auto both = read<std::uint32_t>(term_x + 2 * pair);
      const __m512 first = Avx512::broadcast(__builtin_bit_cast(float, both << 16)),
                   second = Avx512::broadcast(__builtin_bit_cast(float, both & 0xffff0000U));
      for (int p = 0; p < 2; ++p) {
        const std::byte* at = panels[p] + pair * pair_bytes;
        if (asks_ahead && pair % 4 == 0) ahead<Avx512, 1>(at, 4 * pair_bytes);
        for (int v = 0; v < vectors; ++v) {
          const auto* w = reinterpret_cast<const std::uint16_t*>(at) + 2 * v * Avx512::lanes;
          even[p][v] = Avx512::fma(first, Avx512::even_bf16(w), even[p][v]);
          odd[p][v] = Avx512::fma(second, Avx512::odd_bf16(w), odd[p][v]);
        }
      }
    }
    for (int p = 0; p < 2; ++p)
      for (int v = 0; v < vectors; ++v) sums[p][v] += even[p][v] + odd[p][v];
  };
  for (std::int64_t k = 0; k < args.shape.in; k += 2 * tile_height) {
    for (int term = 0; term < terms; ++term, x += 2 * tile_height) add_term(x, term == 0);
    for (auto& panel : panels) panel += tile_height * pair_bytes;
  }
  for (int p = 0; p < 2; ++p)
    for (int v = 0; v < vectors; ++v)
      Avx512::store(args.y + (index + p * apart) * panel_outputs + v * Avx512::lanes, sums[p][v]);
}

inline void copy_outputs(const float* from, std::int64_t outputs, float* to) {
  if (outputs == panel_outputs) {
    __builtin_memcpy(to, from, panel_outputs * sizeof(float));
  } else {
    for (std::int64_t o = 0; o < outputs; ++o) to[o] = from[o];
  }
}

// One panel for some rows, whose sums stand side by side until they are whole: in y, rows of a power of two
// would push each other out of the first-level cache.
template <int terms>
class TileProduct {
 public:
  static constexpr std::int64_t most_rows = 256;

  explicit TileProduct(const Multiply& args)
      : args_(args), pairs_(even(args.shape.in) / 2), whole_steps_(pairs_ / tile_height) {}

  // The last may have fewer inputs.
  std::int64_t steps() const { return (pairs_ + tile_height - 1) / tile_height; }

  // Some steps, a few at once. The order of the sums is the same for any number of rows, and whichever steps
  // are taken at once.
  void add(std::int64_t index, std::int64_t first_row, std::int64_t rows, std::int64_t first_step,
           std::int64_t end_step) {
    const std::int64_t outputs = smaller(panel_outputs, args_.shape.out - index * panel_outputs);
    float* y = args_.y + first_row * args_.stride + index * panel_outputs;
    bool adds = args_.adds || first_step > 0;
    if (adds) {
      for (std::int64_t r = 0; r < rows; ++r) copy_outputs(y + r * args_.stride, outputs, sums_[r]);
    }
    const std::byte* panel = args_.panels + index * args_.panel_stride;
    for (std::int64_t step = first_step; step < end_step;) {
      const std::int64_t whole = smaller(end_step, whole_steps_) - step,
                         steps = whole > 0 ? smaller(steps_at_once(terms), whole) : 1;
      add_inputs(panel, first_row, rows, step, steps, adds);
      step += steps;
      adds = true;
    }
    for (std::int64_t r = 0; r < rows; ++r) copy_outputs(sums_[r], outputs, y + r * args_.stride);
  }

 private:
  void add_inputs(const std::byte* panel, std::int64_t first_row, std::int64_t rows, std::int64_t step,
                  std::int64_t steps, bool adds) {
    const std::int64_t x_bytes = terms * prepared_bytes(Activation::bf16, args_.shape.in, 0);
    const std::int64_t pairs = step < whole_steps_ ? tile_height : pairs_ - whole_steps_ * tile_height;
    panel += step * step_bytes;
    // Many blocks of rows share the prefetch of as many inputs after these. Of few the first prefetches all,
    // from near by: their time is memory's, which is read in order then.
    const std::int64_t row_blocks = (rows + 2 * tile_height - 1) / (2 * tile_height);
    const bool shared = row_blocks >= 4;
    PanelPrefetch prefetch{panel + (shared ? steps * step_bytes : Avx512::prefetch.bytes),
                           shared ? step_bytes / row_blocks : step_bytes};
    for (std::int64_t row = 0; row < rows; row += 2 * tile_height) {
      const TileShape shape{smaller(2 * tile_height, rows - row), pairs};
      if (shape != shape_) configure(shape_ = shape);
      const std::byte* upper = args_.prepared + (first_row + row) * x_bytes;
      const std::int64_t before = step * terms * tile_bytes;  // of a row
      const TileRows x{upper + before * shape.upper(), upper + tile_height * x_bytes + before * shape.lower(),
                       4 * pairs};
      if (shape.lower() > 0) {
        add_tiles<true, terms>(x, shape, panel, steps, sums_[row], adds, prefetch);
      } else {
        add_tiles<false, terms>(x, shape, panel, steps, sums_[row], adds, prefetch);
      }
      if (!shared) prefetch.bytes_per_step = 0;
    }
  }

  const Multiply& args_;
  std::int64_t pairs_, whole_steps_;
  TileShape shape_;
  alignas(64) float sums_[most_rows][panel_outputs];
};

template <int terms>
void multiply_by_tiles(const Multiply& args, std::int64_t first_panel, std::int64_t end_panel) {
  if (args.shape.format != Format::bf16) return multiply<Avx512>(args, first_panel, end_panel);
  if (args.rows == 1 && !args.adds && args.shape.in % (2 * tile_height) == 0) {
    const std::int64_t half = (smaller(end_panel, args.shape.out / panel_outputs) - first_panel) / 2;
    for (std::int64_t p = first_panel; p < first_panel + half; ++p)
      multiply_row_as_tiles<terms>(args, p, half);
    if (half > 0) first_panel += 2 * half;
  }
  TileProduct<terms> product(args);
  constexpr std::int64_t at_once = steps_at_once(terms);
  const std::int64_t steps = product.steps();
  // Of few inputs most is y, which is gone through in its order.
  const std::int64_t rows_at_once = steps <= at_once ? 2 * tile_height : product.most_rows;
  for (std::int64_t row = 0; row < args.rows; row += rows_at_once) {
    const std::int64_t rows = smaller(rows_at_once, args.rows - row);
    // So many inputs of x stay in the second-level cache for all panels.
    const std::int64_t block = x_bytes_in_second_level / (rows * terms * tile_bytes) / at_once * at_once;
    for (std::int64_t step = 0; step < steps; step += block)
      for (std::int64_t p = first_panel; p < end_panel; ++p)
        product.add(p, row, rows, step, smaller(steps, step + block));
  }
  _tile_release();
}

// The upper half of a float's bits, and what it leaves: of 24 digits each takes 8. Of infinity and NaN
// nothing is left.
struct Truncated {
  std::uint16_t bits;
  float rest;
};
inline Truncated truncated(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const auto upper = __builtin_bit_cast(float, bits & 0xffff0000U);
  const bool finite = (bits & 0x7f800000U) != 0x7f800000U;
  const bool quiet = value == value;
  return {static_cast<std::uint16_t>(quiet ? bits >> 16 : bits >> 16 | 0x40U), finite ? value - upper : 0.0F};
}

// An input's terms, so far apart.
template <int terms>
void prepare_terms(float value, std::uint16_t* to, std::int64_t apart) {
  if constexpr (terms == 1) {
    *to = to_bf16(value);
  } else {
    for (int term = 0; term < terms; ++term, to += apart) {
      const auto [bits, rest] = truncated(value);
      *to = bits;
      value = rest;
    }
  }
}

// Terms of bfloat16 in tiles of 16 rows by 32 inputs.
template <int terms>
void prepare_for_tiles(const Prepare& args, std::int64_t first_tile, std::int64_t end_tile) {
  if (args.activation != (terms == 1 ? Activation::bf16 : Activation::bf16_x3))
    return prepare<Avx512>(args, first_tile, end_tile);
  constexpr std::int64_t inputs = 2 * tile_height;
  const std::int64_t width = even(args.in), end = smaller(args.rows, end_tile * tile_height);
  for (std::int64_t first = first_tile * tile_height; first < end; first += tile_height) {
    const std::int64_t m = smaller(tile_height, args.rows - first);
    auto* tile = reinterpret_cast<std::uint16_t*>(args.prepared) + first * width * terms;
    for (std::int64_t row = 0; row < m; ++row) {
      const float* x = args.x + (first + row) * args.stride;
      std::int64_t k = 0;
      for (; k + inputs <= args.in; k += inputs) {
        std::uint16_t* to = tile + k * terms * m + row * inputs;
        for (std::int64_t i = 0; i < inputs; ++i) prepare_terms<terms>(x[k + i], to + i, m * inputs);
      }
      const std::int64_t rest = width - k;
      std::uint16_t* to = tile + k * terms * m + row * rest;
      for (std::int64_t i = 0; i < rest; ++i)
        prepare_terms<terms>(k + i < args.in ? x[k + i] : 0, to + i, m * rest);
    }
  }
}

template <int terms>
constexpr PanelLoops by_tiles(const char* name) {
  PanelLoops loops = panel_loops<Avx512>(name);
  loops.bf16_terms = terms;
  loops.pair_rows = tile_height;
  loops.prepare = prepare_for_tiles<terms>;
  loops.multiply = multiply_by_tiles<terms>;
  return loops;
}

}  // namespace

extern const PanelLoops panels_amx = by_tiles<1>("amx");
extern const PanelLoops panels_amx_float32 = by_tiles<3>("amx_float32");

}  // namespace tandem::kernels
