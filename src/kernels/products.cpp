#include "kernels/products.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

const PanelLoops*& chosen_loops() {
  static const PanelLoops* loops = find_loops();
  return loops;
}

// Of the chosen ones, what leaves x of bfloat16 matrices as it is.
const PanelLoops*& exact_loops() {
  static const PanelLoops* loops = find_loops();
  return loops;
}

bool& float32_rows() {
  static bool wanted = false;
  return wanted;
}

std::atomic<std::uint64_t>& bytes_read() {
  static std::atomic<std::uint64_t> bytes{0};
  return bytes;
}

// Of a thread, by kind of row.
std::byte* scratch_of(Activation activation, std::size_t bytes) {
  thread_local std::vector<std::byte> scratch[static_cast<int>(Activation::int8) + 1];
  auto& memory = scratch[static_cast<int>(activation)];
  if (memory.size() < bytes) memory.resize(bytes);
  return memory.data();
}

// Whether the operand's panels are not as they are multiplied, and so are made on the way.
bool is_made(const Operand& operand) { return !operand.packed || operand.unpacks || operand.turned; }

// One of them; a dense matrix, turned as float32, has its made together (made_panels).
void make_panel(const Operand& operand, std::int64_t index, std::byte* panel) {
  const PanelShape& shape = operand.shape;
  auto* to = reinterpret_cast<float*>(panel);
  auto* pairs = reinterpret_cast<std::uint16_t*>(panel);
  if (operand.turned && shape.format == Format::bf16) {
    if (operand.packed) {
      turn_panel_pairs(*operand.packed, index, pairs);
    } else {
      pack_column_pairs(static_cast<const std::uint16_t*>(operand.dense), shape.in, shape.out, index, pairs);
    }
  } else if (operand.turned && operand.packed) {
    unpack_columns(*operand.packed, index * panel_outputs, panel_outputs, to);
    if (shape.in % 2 != 0) std::fill_n(to + shape.in * panel_outputs, panel_outputs, 0.0F);
  } else if (operand.unpacks) {
    unpack_panel(*operand.packed, index, to);
  } else {
    pack_panel(operand.dense, shape, index, panel);
  }
}

// Some panels, one behind the other, in the thread's memory.
const std::byte* made_panels(const Operand& operand, std::int64_t first, std::int64_t count) {
  thread_local std::vector<std::byte> made;
  const std::int64_t bytes = panel_bytes(operand.shape);
  if (std::ssize(made) < count * bytes) made.resize(static_cast<std::size_t>(count * bytes));
  if (operand.turned && !operand.packed && operand.shape.format == Format::f32) {
    // Together, so that each row of the dense matrix is read in order.
    pack_columns(operand.dense, operand.stored, operand.shape.in, operand.shape.out, first, count,
                 reinterpret_cast<float*>(made.data()));
  } else {
    for (std::int64_t i = 0; i < count; ++i) make_panel(operand, first + i, made.data() + i * bytes);
  }
  return made.data();
}

void choose_exact_loops() {
  const PanelLoops* loops = chosen_loops();
  exact_loops() = loops->bf16_terms != 1       ? loops
                  : loops == find_loops("amx") ? find_loops("amx_float32")
                                               : find_loops("avx512");
}

}  // namespace

void use_activations(Activations activations) {
  float32_rows() = activations == Activations::float32;
  choose_exact_loops();
}

void use_loops(const char* name) {
  const PanelLoops* loops = find_loops(name);
  if (!loops) throw std::invalid_argument(std::string("this processor does not have ") + name);
  chosen_loops() = loops;
  choose_exact_loops();
}

const PanelLoops& current_loops() { return float32_rows() ? *exact_loops() : *chosen_loops(); }

Operand packed_operand(const PackedMatrix& matrix) {
  const PanelShape& shape = matrix.shape();
  if (!float32_rows() || !is_quantised(shape.format)) return {shape, &matrix};
  return {{shape.out, shape.in, Format::f32, ScaleType::f32, 0}, &matrix, nullptr, true};
}

Operand dense_operand(Format format, std::int64_t out, std::int64_t in, const void* rows) {
  return {{out, in, format, ScaleType::f32, 0}, nullptr, rows};
}

Operand turned(const Operand& operand) {
  const PanelShape& shape = operand.shape;
  const bool pairs = shape.format == Format::bf16 && current_loops().bf16_terms > 0;
  Operand other = operand;
  other.shape = {shape.in, shape.out, pairs ? Format::bf16 : Format::f32, ScaleType::f32, 0};
  other.unpacks = false;
  other.turned = true;
  other.stored = shape.format;
  return other;
}

void prepare_columns(const float* x, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                     float* prepared) {
  const std::int64_t height = current_loops().dense_rows, tiles = (columns + height - 1) / height;
  constexpr std::int64_t tiles_at_once = 4;
  parallel((tiles + tiles_at_once - 1) / tiles_at_once, [&](std::int64_t part) {
    const std::int64_t end = std::min(columns, (part + 1) * tiles_at_once * height);
    for (std::int64_t first = part * tiles_at_once * height; first < end; first += height) {
      const std::int64_t count = std::min(height, columns - first);
      float* to = prepared + first * even(rows);
      for (std::int64_t r = 0; r < rows; ++r) to = std::copy_n(x + r * stride + first, count, to);
      if (rows % 2 != 0) std::fill_n(to, count, 0.0F);
    }
  });
}

const std::byte* PreparedRows::as(const PanelShape& shape) {
  const PanelLoops& loops = current_loops();
  const Activation activation = activation_of(shape.format, loops);
  const int group = activation == Activation::int8 ? shape.group : 0;
  for (const Kind& kind : kinds_) {
    if (kind.activation == activation && kind.group == group) return kind.bytes;
  }
  // Groups of one activation take turns in its memory.
  std::erase_if(kinds_, [&](const Kind& kind) { return kind.activation == activation; });
  std::byte* bytes =
      scratch_of(activation, static_cast<std::size_t>(rows_ * prepared_bytes(activation, shape.in, group)));
  kinds_.push_back({activation, group, bytes});
  if (turned_) {
    prepare_columns(x_, shape.in, rows_, rows_, reinterpret_cast<float*>(bytes));
    return bytes;
  }
  const Prepare args{x_, shape.in, rows_, shape.in, activation, group, bytes};
  const std::int64_t height = tile_rows(activation, loops), tiles = (rows_ + height - 1) / height;
  constexpr std::int64_t tiles_at_once = 4;
  parallel((tiles + tiles_at_once - 1) / tiles_at_once, [&](std::int64_t part) {
    loops.prepare(args, part * tiles_at_once, std::min(tiles, (part + 1) * tiles_at_once));
  });
  return bytes;
}

void multiply_panels(const Operand& operand, const std::byte* prepared, std::int64_t rows, float* y,
                     std::int64_t first, std::int64_t end, bool adds) {
  const PanelLoops& loops = current_loops();
  const PanelShape& shape = operand.shape;
  if (operand.packed && !operand.turned) {
    bytes_read().fetch_add((end - first) * panel_bytes(operand.packed->shape()), std::memory_order_relaxed);
  }
  if (!is_made(operand)) {
    loops.multiply({shape, operand.packed->panel(0), panel_bytes(shape), prepared, y, shape.out, rows, adds},
                   first, end);
    return;
  }
  // As many as stay in the second-level cache.
  constexpr std::int64_t bytes_at_once = 256 << 10;
  const std::int64_t bytes = panel_bytes(shape), at_once = std::max<std::int64_t>(1, bytes_at_once / bytes);
  for (std::int64_t p = first; p < end; p += at_once) {
    const std::int64_t count = std::min(at_once, end - p);
    PanelShape some = shape;
    some.out = std::min(count * panel_outputs, shape.out - p * panel_outputs);
    loops.multiply(
        {some, made_panels(operand, p, count), bytes, prepared, y + p * panel_outputs, shape.out, rows, adds},
        0, count);
  }
}

void multiply_panel(const Operand& operand, const std::byte* prepared, std::int64_t rows, float* y,
                    std::int64_t stride, std::int64_t index) {
  const std::byte* panel = is_made(operand) ? made_panels(operand, index, 1) : operand.packed->panel(index);
  PanelShape one = operand.shape;
  one.out = std::min<std::int64_t>(panel_outputs, one.out - index * panel_outputs);
  current_loops().multiply({one, panel, panel_bytes(one), prepared, y, stride, rows}, 0, 1);
}

void multiply(const Operand& operand, PreparedRows& x, float* y, bool adds) {
  if (operand.shape.in == 0) {
    if (!adds) std::fill_n(y, x.rows() * operand.shape.out, 0.0F);
    return;
  }
  const std::byte* prepared = x.as(operand.shape);
  const std::int64_t panels = panels_of(operand.shape);
  // Few enough parts that each is a long stream, and enough of them that threads of unequal speed end
  // together.
  const std::int64_t parts = threads() == 1 ? 1 : std::min<std::int64_t>(panels, threads() * 8);
  parallel(parts, [&](std::int64_t part) {
    multiply_panels(operand, prepared, x.rows(), y, panels * part / parts, panels * (part + 1) / parts, adds);
  });
}

void multiply_outer(const float* a, std::int64_t m, const float* b, std::int64_t n, std::int64_t rows,
                    float* y) {
  if (n < panel_outputs && n < m) {  // yᵀ instead, whose panels are full
    std::vector<float> transposed(static_cast<std::size_t>(m * n));
    multiply_outer(b, n, a, m, rows, transposed.data());
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) y[i * n + j] = transposed[j * m + i];
    }
    return;
  }
  PreparedRows columns(a, m, /*turned=*/true);
  multiply(turned(dense_operand(Format::f32, rows, n, b)), columns, y);
}

std::uint64_t panel_bytes_read() { return bytes_read(); }

}  // namespace tandem::kernels
