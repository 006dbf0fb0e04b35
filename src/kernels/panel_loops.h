// The loops of panels.h over an instruction set `Isa`, included once by each panels_*.cpp. What an Isa gives:
//   Float, Int                  vectors of `lanes` 32-bit elements
//   zero, broadcast, load, store, fma, mul, to_float
//   load_f16, load_bf16         16-bit elements made float
//   even_bf16, odd_bf16         of `lanes` pairs
//   pair_dot                    acc + two products of bfloat16 (where bf16_pairs)
//   start8, start4              an integer sum's first value, from the sum of x8
//   dot8, dot4                  the products of 32 inputs
//   part_rows                   where an Isa holds them otherwise: a group's dots become rows of outputs
#pragma once

#include "kernels/panels.h"
#include "kernels/prepare_loops.h"
#include "kernels/vector_loops.h"

namespace tandem::kernels {
namespace {

// How far a product of few rows asks for its stream ahead, and into which cache. Weights are read once, so
// that on AMD they best pass the second-level one by (Zen 1: 8 to 21 % over the hardware's prefetch). On
// Intel what does waits in the few buffers of the first: 10 GB/s (Sapphire Rapids), where 15 come through it.
struct Prefetch {
  int bytes;
  int locality;  // of __builtin_prefetch: 0 bypasses, 2 is the second-level cache
};
inline constexpr Prefetch prefetch_past_caches{512, 0}, prefetch_to_second_level{2048, 2};
// A product of one row reads as many panels side by side: a core has more requests to memory in flight with
// two streams than with one, 8 % more bytes a second.
inline constexpr int panels_of_a_row = 2;

// Of the `bytes` from `at` on, which a product of M rows reads next, what comes that much later.
template <class Isa, int M>
inline void ahead(const std::byte* at, std::int64_t bytes) {
  if constexpr (M <= 2) {
    for (std::int64_t line = 0; line < bytes; line += 64)
      __builtin_prefetch(at + line + Isa::prefetch.bytes, 0, Isa::prefetch.locality);
  }
}

template <class T>
inline T read(const void* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

// One tile times some vectors of a few panels, over the units [first_unit, end_unit).
struct Block {
  const PanelShape* shape;
  const std::byte* panel;
  std::int64_t apart;  // panels from one to the one computed beside it
  std::int64_t panel_bytes;
  const std::byte* tile;
  std::int64_t first_unit;
  std::int64_t end_unit;
  bool starts;  // at the sums' first terms; else y holds those before
  float* y;     // the first panel's first output of the tile's first row
  std::int64_t stride;
};

// Sums of M rows and P panels, V vectors of each panel.
template <class Isa, int M, int P, int V>
struct Sums {
  typename Isa::Float at[P][M][V];

  Sums(const Block& b, int vector) {
    each(b, vector, [&](typename Isa::Float& sum, float* y) { sum = b.starts ? Isa::zero() : Isa::load(y); });
  }
  void store(const Block& b, int vector) {
    each(b, vector, [](typename Isa::Float& sum, float* y) { Isa::store(y, sum); });
  }

 private:
  void each(const Block& b, int vector, auto with) {
    for (int p = 0; p < P; ++p) {
      for (int m = 0; m < M; ++m) {
        for (int v = 0; v < V; ++v)
          with(at[p][m][v], b.y + m * b.stride + p * b.apart * panel_outputs + (vector + v) * Isa::lanes);
      }
    }
  }
};

// V vectors of input k (0 or 1) of a unit's two.
template <class Isa, Format F, int V>
inline void load_weights(const std::byte* unit, int k, int vector, typename Isa::Float (&w)[V]) {
  for (int v = 0; v < V; ++v) {
    const int first = (vector + v) * Isa::lanes;
    if constexpr (F == Format::f32) {
      w[v] = Isa::load(reinterpret_cast<const float*>(unit) + k * panel_outputs + first);
    } else if constexpr (F == Format::f16) {
      w[v] = Isa::load_f16(reinterpret_cast<const std::uint16_t*>(unit) + k * panel_outputs + first);
    } else {
      const auto* pairs = reinterpret_cast<const std::uint16_t*>(unit) + 2 * first;
      w[v] = k == 0 ? Isa::even_bf16(pairs) : Isa::odd_bf16(pairs);
    }
  }
}

template <class Isa, int M, int P, int V, Format F>
inline void dense(const Block& b, int vector) {
  Sums<Isa, M, P, V> sums(b, vector);
  constexpr int bytes = 2 * (F == Format::f32 ? 4 : 2) * panel_outputs;
  for (std::int64_t unit = b.first_unit; unit < b.end_unit; ++unit) {
    const float* x = reinterpret_cast<const float*>(b.tile) + unit * 2 * M;
    for (int p = 0; p < P; ++p) {
      const std::byte* at = b.panel + p * b.apart * b.panel_bytes + unit * bytes;
      if (vector == 0) ahead<Isa, M>(at, bytes);
      for (int k = 0; k < 2; ++k) {
        typename Isa::Float w[V];
        load_weights<Isa, F, V>(at, k, vector, w);
        for (int m = 0; m < M; ++m) {
          const auto value = Isa::broadcast(x[k * M + m]);
          for (int v = 0; v < V; ++v) sums.at[p][m][v] = Isa::fma(value, w[v], sums.at[p][m][v]);
        }
      }
    }
  }
  sums.store(b, vector);
}

template <class Isa, int M, int P, int V>
inline void dense_pairs(const Block& b, int vector) {
  Sums<Isa, M, P, V> sums(b, vector);
  for (std::int64_t unit = b.first_unit; unit < b.end_unit; ++unit) {
    const std::byte* x = b.tile + unit * 4 * M;
    for (int p = 0; p < P; ++p) {
      const std::byte* at = b.panel + p * b.apart * b.panel_bytes + unit * 4 * panel_outputs;
      if (vector == 0) ahead<Isa, M>(at, 4 * panel_outputs);
      typename Isa::Int w[V];
      for (int v = 0; v < V; ++v) w[v] = Isa::load_int(at + (vector + v) * Isa::lanes * 4);
      for (int m = 0; m < M; ++m) {
        const auto pair = Isa::broadcast_int(read<std::int32_t>(x + m * 4));
        for (int v = 0; v < V; ++v) sums.at[p][m][v] = Isa::pair_dot(sums.at[p][m][v], w[v], pair);
      }
    }
  }
  sums.store(b, vector);
}

template <class Isa>
inline typename Isa::Float load_scales(const std::byte* at, int index, ScaleType type) {
  if (type == ScaleType::f16) return Isa::load_f16(reinterpret_cast<const std::uint16_t*>(at) + index);
  if (type == ScaleType::bf16) return Isa::load_bf16(reinterpret_cast<const std::uint16_t*>(at) + index);
  return Isa::load(reinterpret_cast<const float*>(at) + index);
}

// A tile of int8 rows.
template <int M>
struct IntegerTile {
  const std::byte* codes;
  const float* scales;
  const float* scaled_sums;
  const std::int32_t* sums;

  explicit IntegerTile(const Block& b) : codes(b.tile) {
    const std::int64_t groups = b.shape->in / b.shape->group;
    scales = reinterpret_cast<const float*>(b.tile + b.shape->in * M);
    scaled_sums = scales + groups * M;
    sums = reinterpret_cast<const std::int32_t*>(scaled_sums + groups * M);
  }
};

// One group of one panel.
template <class Isa, int M, int V, Format F>
inline void quantised_group(const Block& b, const IntegerTile<M>& tile, const std::byte* unit, std::int64_t g,
                            int vector, typename Isa::Float (&acc)[M][V]) {
  const int group = b.shape->group;
  const ScaleType type = b.shape->scale;
  const std::int64_t head = scale_bytes(type) * panel_outputs;
  constexpr int step_bytes = (F == Format::q8 ? 32 : 16) * panel_outputs;  // of 32 inputs
  const std::byte* codes = unit + 2 * head + vector * Isa::lanes * 4;
  const std::byte* x = tile.codes + g * group * M;
  typename Isa::Int dots[M][V];
  for (int m = 0; m < M; ++m) {
    const std::int32_t sum = tile.sums[g * M + m];
    for (int v = 0; v < V; ++v) dots[m][v] = F == Format::q8 ? Isa::start8(sum) : Isa::start4(sum);
  }
  if (vector == 0) ahead<Isa, M>(unit, 2 * head);
  for (int k = 0; k < group; k += 32, codes += step_bytes, x += 32 * M) {
    if (vector == 0) ahead<Isa, M>(codes, step_bytes);
    if constexpr (F == Format::q8) {
      Isa::template dot8<M, V>(codes, x, dots);
    } else {
      Isa::template dot4<M, V>(codes, x, dots);
    }
  }
  if constexpr (requires { Isa::template part_rows<M, V>(dots); }) Isa::template part_rows<M, V>(dots);
  for (int v = 0; v < V; ++v) {
    const auto scale = load_scales<Isa>(unit, (vector + v) * Isa::lanes, type);
    const auto bias = load_scales<Isa>(unit + head, (vector + v) * Isa::lanes, type);
    for (int m = 0; m < M; ++m) {
      const auto dot = Isa::mul(Isa::to_float(dots[m][v]), scale);
      acc[m][v] = Isa::fma(dot, Isa::broadcast(tile.scales[g * M + m]), acc[m][v]);
      acc[m][v] = Isa::fma(bias, Isa::broadcast(tile.scaled_sums[g * M + m]), acc[m][v]);
    }
  }
}

template <class Isa, int M, int P, int V, Format F>
inline void quantised(const Block& b, int vector) {
  Sums<Isa, M, P, V> sums(b, vector);
  const IntegerTile<M> tile(b);
  const std::int64_t bytes = unit_bytes(*b.shape);
  for (std::int64_t g = b.first_unit; g < b.end_unit; ++g) {
    for (int p = 0; p < P; ++p) {
      const std::byte* unit = b.panel + p * b.apart * b.panel_bytes + g * bytes;
      quantised_group<Isa, M, V, F>(b, tile, unit, g, vector, sums.at[p]);
    }
  }
  sums.store(b, vector);
}

// P whole panels, in as many vectors at once as the registers hold with M rows.
template <class Isa, int M, int P, Format F>
void panel(const Block& b) {
  constexpr int vectors = panel_outputs / Isa::lanes;
  constexpr int at_once = M == 1 ? vectors : Isa::vectors;
  for (int vector = 0; vector < vectors; vector += at_once) {
    if constexpr (is_quantised(F)) {
      quantised<Isa, M, P, at_once, F>(b, vector);
    } else if constexpr (F == Format::bf16 && Isa::bf16_pairs) {
      dense_pairs<Isa, M, P, at_once>(b, vector);
    } else {
      dense<Isa, M, P, at_once, F>(b, vector);
    }
  }
}

template <class Isa, Format F, int M = is_quantised(F) ? Isa::integer_rows : Isa::dense_rows>
void panel_of_rows(const Block& b, int m) {
  if (m == M) return panel<Isa, M, 1, F>(b);
  if constexpr (M > 1) panel_of_rows<Isa, F, M - 1>(b, m);
}

// The panel at the matrix's edge: its sums stand in a panel's width of their own.
template <class Isa, Format F>
void edge_panel(Block b, int m, int outputs) {
  float sums[(is_quantised(F) ? Isa::integer_rows : Isa::dense_rows) * panel_outputs];
  float* y = b.y;
  const std::int64_t stride = b.stride;
  for (int row = 0; row < m; ++row) {
    for (int o = 0; o < panel_outputs; ++o)
      sums[row * panel_outputs + o] = o < outputs ? y[row * stride + o] : 0;
  }
  b.y = sums;
  b.stride = panel_outputs;
  panel_of_rows<Isa, F>(b, m);
  for (int row = 0; row < m; ++row) {
    for (int o = 0; o < outputs; ++o) y[row * stride + o] = sums[row * panel_outputs + o];
  }
}

// One row: two panels side by side, each from a half of its own, so that either stream goes on where it was.
template <class Isa, Format F>
std::int64_t multiply_row(const Multiply& args, std::int64_t units, std::int64_t first_panel,
                          std::int64_t end_panel) {
  const std::int64_t bytes = args.panel_stride, full = args.shape.out / panel_outputs;
  const std::int64_t half = (smaller(end_panel, full) - first_panel) / panels_of_a_row;
  for (std::int64_t p = first_panel; p < first_panel + half; ++p) {
    panel<Isa, 1, panels_of_a_row, F>({&args.shape, args.panels + p * bytes, half, bytes, args.prepared, 0,
                                       units, !args.adds, args.y + p * panel_outputs, args.stride});
  }
  return first_panel + panels_of_a_row * half;
}

template <class Isa, Format F>
void multiply_as(const Multiply& args, std::int64_t first_panel, std::int64_t end_panel) {
  constexpr std::int64_t rows = is_quantised(F) ? Isa::integer_rows : Isa::dense_rows;
  constexpr Activation activation = is_quantised(F)                        ? Activation::int8
                                    : F == Format::bf16 && Isa::bf16_pairs ? Activation::bf16
                                                                           : Activation::f32;
  const PanelShape& shape = args.shape;
  const std::int64_t bytes = args.panel_stride, row_bytes = prepared_bytes(activation, shape.in, shape.group);
  const std::int64_t units = (shape.in + unit_inputs(shape) - 1) / unit_inputs(shape);
  if (args.rows == 1) first_panel = multiply_row<Isa, F>(args, units, first_panel, end_panel);
  // Many rows: as many inputs at once as keep the panel's part in the first-level cache and all rows' in the
  // second, for a few panels before the next inputs.
  const std::int64_t block = args.rows <= rows ? units : (is_quantised(F) ? 512 : 256) / unit_inputs(shape);
  const std::int64_t at_once = args.rows <= rows ? 1 : 8;
  for (std::int64_t chunk = first_panel; chunk < end_panel; chunk += at_once) {
    for (std::int64_t unit = 0; unit < units; unit += block) {
      for (std::int64_t p = chunk; p < smaller(end_panel, chunk + at_once); ++p) {
        const std::int64_t outputs = smaller(panel_outputs, shape.out - p * panel_outputs);
        for (std::int64_t row = 0; row < args.rows; row += rows) {
          const int m = static_cast<int>(smaller(rows, args.rows - row));
          const Block b{&shape,
                        args.panels + p * bytes,
                        0,
                        bytes,
                        args.prepared + row * row_bytes,
                        unit,
                        smaller(units, unit + block),
                        unit == 0 && !args.adds,
                        args.y + row * args.stride + p * panel_outputs,
                        args.stride};
          if (outputs == panel_outputs) {
            panel_of_rows<Isa, F>(b, m);
          } else {
            edge_panel<Isa, F>(b, m, static_cast<int>(outputs));
          }
        }
      }
    }
  }
}

template <class Isa>
void multiply(const Multiply& args, std::int64_t first_panel, std::int64_t end_panel) {
  switch (args.shape.format) {
    case Format::f32:
      return multiply_as<Isa, Format::f32>(args, first_panel, end_panel);
    case Format::f16:
      return multiply_as<Isa, Format::f16>(args, first_panel, end_panel);
    case Format::bf16:
      return multiply_as<Isa, Format::bf16>(args, first_panel, end_panel);
    case Format::q8:
      return multiply_as<Isa, Format::q8>(args, first_panel, end_panel);
    case Format::q4:
      return multiply_as<Isa, Format::q4>(args, first_panel, end_panel);
  }
}

// 32 scales or biases as floats.
template <class Isa>
void widen(const std::byte* from, ScaleType type, float* to) {
  for (int o = 0; o < panel_outputs; o += Isa::lanes) {
    const auto* halves = reinterpret_cast<const std::uint16_t*>(from) + o;
    Isa::store(to + o, type == ScaleType::f32   ? Isa::load(reinterpret_cast<const float*>(from) + o)
                       : type == ScaleType::f16 ? Isa::load_f16(halves)
                                                : Isa::load_bf16(halves));
  }
}

template <class Isa, Format F>
void unpack_dense(const std::byte* panel, std::int64_t first, std::int64_t count, float* to) {
  constexpr int bytes = 2 * (F == Format::f32 ? 4 : 2) * panel_outputs;
  constexpr int vectors = panel_outputs / Isa::lanes;
  for (std::int64_t k = first; k < first + count; ++k, to += panel_outputs) {
    typename Isa::Float w[vectors];
    load_weights<Isa, F, vectors>(panel + k / 2 * bytes, static_cast<int>(k % 2), 0, w);
    for (int v = 0; v < vectors; ++v) Isa::store(to + v * Isa::lanes, w[v]);
  }
}

template <class Isa>
void unpack_codes(const PanelShape& shape, const std::byte* panel, std::int64_t first, std::int64_t count,
                  float* to) {
  float scales[panel_outputs], biases[panel_outputs];
  const bool wide = shape.format == Format::q8;
  const std::int64_t bytes = panel_outputs * scale_bytes(shape.scale);
  for (std::int64_t k = first; k < first + count; ++k, to += panel_outputs) {
    const std::byte* unit = panel + k / shape.group * unit_bytes(shape);
    const std::int64_t in_group = k % shape.group;
    if (k == first || in_group == 0) {
      widen<Isa>(unit, shape.scale, scales);
      widen<Isa>(unit + bytes, shape.scale, biases);
    }
    std::uint32_t words[panel_outputs];
    __builtin_memcpy(words, unit + 2 * bytes + in_group / (wide ? 4 : 8) * panel_outputs * 4, sizeof words);
    const auto shift = static_cast<std::uint32_t>(in_group % 4 * 8 + (wide ? 0 : in_group / 4 % 2 * 4));
    const std::uint32_t mask = wide ? 255 : 15;
    for (int o = 0; o < panel_outputs; ++o)
      to[o] = __builtin_fmaf(static_cast<float>(static_cast<std::int32_t>(words[o] >> shift & mask)),
                             scales[o], biases[o]);
  }
}

template <class Isa>
void unpack(const PanelShape& shape, const std::byte* panel, std::int64_t first, std::int64_t count,
            float* to) {
  switch (shape.format) {
    case Format::f32:
      return unpack_dense<Isa, Format::f32>(panel, first, count, to);
    case Format::f16:
      return unpack_dense<Isa, Format::f16>(panel, first, count, to);
    case Format::bf16:
      return unpack_dense<Isa, Format::bf16>(panel, first, count, to);
    case Format::q8:
    case Format::q4:
      return unpack_codes<Isa>(shape, panel, first, count, to);
  }
}

template <class Isa>
constexpr PanelLoops panel_loops(const char* name) {
  return {name,         Isa::bf16_pairs ? 1 : 0, Isa::dense_rows, Isa::dense_rows, Isa::integer_rows,
          prepare<Isa>, multiply<Isa>,           unpack<Isa>,     vector_loops};
}

}  // namespace
}  // namespace tandem::kernels
