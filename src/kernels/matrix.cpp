#include "kernels/matrix.h"

#include <mlx/ops.h>
#include <mlx/primitives.h>
#include <mlx/transforms.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "kernels/cpu_primitive.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

ScaleType dense_type(Format format) {
  return format == Format::f32 ? ScaleType::f32 : format == Format::f16 ? ScaleType::f16 : ScaleType::bf16;
}

PanelShape shape_of(const Matrix& m) {
  if (!m.affine) return {m.out(), m.in(), dense_format(m.weight->dtype()), ScaleType::f32, 0};
  return {m.out(), m.in(), m.affine->bits == 8 ? Format::q8 : Format::q4,
          dense_type(dense_format(m.affine->scales.dtype())), m.affine->group};
}

// Where a dense panel holds input k of output o, in elements.
std::int64_t dense_index(Format format, std::int64_t k, std::int64_t o) {
  return format == Format::bf16 ? (k / 2 * panel_outputs + o) * 2 + k % 2 : k * panel_outputs + o;
}

// Of 16 bits.
void pack_dense(const std::uint16_t* weight, const PanelShape& shape, std::int64_t index,
                std::uint16_t* panel) {
  for (std::int64_t o = 0; o < panel_outputs; ++o) {
    const std::int64_t row = index * panel_outputs + o;
    for (std::int64_t k = 0; k < shape.in + shape.in % 2; ++k) {
      const bool here = row < shape.out && k < shape.in;
      panel[dense_index(shape.format, k, o)] = here ? weight[row * shape.in + k] : std::uint16_t{0};
    }
  }
}

// `rows` [count][in], at most 32 of them.
void pack_turned(const float* rows, std::int64_t count, std::int64_t in, float* panel) {
  const std::int64_t whole = in / panel_outputs * panel_outputs;
  if (count < panel_outputs) std::fill_n(panel, even(in) * panel_outputs, 0.0F);
  for (std::int64_t k = 0; k < whole; k += panel_outputs)
    current_loops().vectors.turn(rows + k, in, count, panel + k * panel_outputs, panel_outputs);
  for (std::int64_t k = whole; k < even(in); ++k) {
    for (std::int64_t o = 0; o < count; ++o) panel[k * panel_outputs + o] = k < in ? rows[o * in + k] : 0.0F;
  }
}

// Where a code stands in a group of a panel, in bytes, and how far to shift it.
struct CodePlace {
  std::int64_t byte;
  int shift;
};
CodePlace code_place(Format format, std::int64_t k, std::int64_t o) {
  if (format == Format::q8) return {k / 4 * panel_outputs * 4 + o * 4 + k % 4, 0};
  return {k / 8 * panel_outputs * 4 + o * 4 + k % 4, static_cast<int>(k / 4 % 2 * 4)};
}

struct AffineRows {
  const std::uint8_t* codes;  // [out, in * bits / 8]
  const std::byte* scales;    // [out, in / group]
  const std::byte* biases;
};

void pack_affine(const AffineRows& from, const PanelShape& shape, std::int64_t index, std::byte* panel) {
  const std::int64_t groups = shape.in / shape.group, bytes = scale_bytes(shape.scale);
  const int bits = shape.format == Format::q8 ? 8 : 4;
  std::memset(panel, 0, panel_bytes(shape));
  for (std::int64_t o = 0; o < panel_outputs; ++o) {
    const std::int64_t row = index * panel_outputs + o;
    if (row >= shape.out) break;
    for (std::int64_t g = 0; g < groups; ++g) {
      std::byte* unit = panel + g * unit_bytes(shape);
      std::memcpy(unit + o * bytes, from.scales + (row * groups + g) * bytes, bytes);
      std::memcpy(unit + (panel_outputs + o) * bytes, from.biases + (row * groups + g) * bytes, bytes);
      auto* codes = reinterpret_cast<std::uint8_t*>(unit + 2 * panel_outputs * bytes);
      const std::uint8_t* source = from.codes + (row * shape.in + g * shape.group) * bits / 8;
      for (int k = 0; k < shape.group; ++k) {
        const int code = bits == 8 ? source[k] : source[k / 2] >> (k % 2 * 4) & 15;
        const CodePlace place = code_place(shape.format, k, o);
        codes[place.byte] = static_cast<std::uint8_t>(codes[place.byte] | code << place.shift);
      }
    }
  }
}

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float element(const std::byte* at, std::int64_t index, ScaleType type) {
  if (type == ScaleType::f32) {
    float value;
    std::memcpy(&value, at + index * 4, 4);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, at + index * 2, 2);
  if (type == ScaleType::bf16) return from_bits(std::uint32_t{bits} << 16);
  mx::float16_t half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}

// Inputs [first, first + count) of one output, within the matrix.
void unpack_row(const PackedMatrix& m, std::int64_t output, std::int64_t first, std::int64_t count,
                float* to) {
  const PanelShape& shape = m.shape();
  const std::byte* panel = m.panel(output / panel_outputs);
  const std::int64_t o = output % panel_outputs;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t k = first + i;
    if (!is_quantised(shape.format)) {
      to[i] = element(panel, dense_index(shape.format, k, o), dense_type(shape.format));
      continue;
    }
    const std::byte* unit = panel + k / shape.group * unit_bytes(shape);
    const std::int64_t bytes = scale_bytes(shape.scale);
    const CodePlace place = code_place(shape.format, k % shape.group, o);
    const int code = static_cast<int>(unit[2 * panel_outputs * bytes + place.byte]) >> place.shift &
                     (shape.format == Format::q8 ? 255 : 15);
    to[i] = element(unit, o, shape.scale) * static_cast<float>(code) +
            element(unit, panel_outputs + o, shape.scale);
  }
}

class Rows : public CpuPrimitive {
 public:
  Rows(mx::Stream stream, std::shared_ptr<const PackedMatrix> matrix)
      : CpuPrimitive(stream), matrix_(std::move(matrix)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [matrix = matrix_, ids = inputs[0].data<std::int32_t>(), count = inputs[0].size(),
            to = result_of(outputs[0])] {
      const std::int64_t in = matrix->shape().in;
      for (std::size_t t = 0; t < count; ++t) unpack_row(*matrix, ids[t], 0, in, to + t * in);
    };
  }
  const char* name() const override { return "TandemRows"; }

 private:
  std::shared_ptr<const PackedMatrix> matrix_;
};

}  // namespace

Format dense_format(mx::Dtype dtype) {
  if (dtype == mx::float32) return Format::f32;
  if (dtype == mx::float16) return Format::f16;
  if (dtype == mx::bfloat16) return Format::bf16;
  throw std::invalid_argument("a matrix is neither float32, float16 nor bfloat16");
}

PackedMatrix::PackedMatrix(const PanelShape& shape)
    : shape_(shape), size_(static_cast<std::size_t>(panels_of(shape) * panel_bytes(shape))) {
  void* memory = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  ::madvise(memory, size_, MADV_HUGEPAGE);  // a wish: small pages work too
#endif
  bytes_ = static_cast<std::byte*>(memory);
}

PackedMatrix::~PackedMatrix() { ::munmap(bytes_, size_); }

int Matrix::out() const { return packed ? static_cast<int>(packed->shape().out) : weight->shape(0); }
int Matrix::in() const {
  if (packed) return static_cast<int>(packed->shape().in);
  return affine ? weight->shape(1) * 32 / affine->bits : weight->shape(1);
}
std::size_t Matrix::bytes() const {
  if (packed) return packed->bytes();
  return weight->nbytes() + (affine ? affine->scales.nbytes() + affine->biases.nbytes() : 0);
}

void pack_panel(const void* weight, const PanelShape& shape, std::int64_t index, std::byte* panel) {
  if (shape.format == Format::f32) {
    const std::int64_t first = index * panel_outputs;
    pack_turned(static_cast<const float*>(weight) + first * shape.in,
                std::min<std::int64_t>(panel_outputs, shape.out - first), shape.in,
                reinterpret_cast<float*>(panel));
  } else {
    pack_dense(static_cast<const std::uint16_t*>(weight), shape, index,
               reinterpret_cast<std::uint16_t*>(panel));
  }
}

bool on_cpu() { return mx::default_device() == mx::Device::cpu; }

Matrix pack(const Matrix& matrix) {
  if (matrix.packed) return matrix;
  const PanelShape shape = shape_of(matrix);
  auto packed = std::make_shared<PackedMatrix>(shape);
  const auto plain = [](const mx::array& array) {
    mx::array made = mx::contiguous(array, false, mx::Device::cpu);
    made.eval();
    return made;
  };
  const mx::array weight = plain(*matrix.weight);
  if (matrix.affine) {
    const mx::array scales = plain(matrix.affine->scales),
                    biases = plain(mx::astype(matrix.affine->biases, scales.dtype(), mx::Device::cpu));
    const AffineRows from{weight.data<std::uint8_t>(), scales.data<std::byte>(), biases.data<std::byte>()};
    parallel(panels_of(shape), [&](std::int64_t p) { pack_affine(from, shape, p, packed->panel(p)); });
  } else {
    const void* from = weight.data<void>();
    parallel(panels_of(shape), [&](std::int64_t p) { pack_panel(from, shape, p, packed->panel(p)); });
  }
  return {std::nullopt, std::nullopt, std::move(packed)};
}

void join(const std::vector<Matrix*>& matrices) {
  const Matrix& front = *matrices.front();
  std::vector<mx::array> weights, scales, biases;
  for (const Matrix* m : matrices) {
    const bool alike =
        m->weight && m->weight->dtype() == front.weight->dtype() && m->in() == front.in() &&
        m->affine.has_value() == front.affine.has_value() &&
        (!m->affine || (m->affine->group == front.affine->group && m->affine->bits == front.affine->bits &&
                        m->affine->scales.dtype() == front.affine->scales.dtype()));
    if (!alike) return;
    weights.push_back(*m->weight);
    if (!m->affine) continue;
    scales.push_back(m->affine->scales);
    biases.push_back(m->affine->biases);
  }
  auto whole = std::make_shared<Matrix>(Matrix{mx::concatenate(weights, 0), std::nullopt, nullptr});
  mx::eval(*whole->weight);
  if (front.affine) {
    whole->affine = {mx::concatenate(scales, 0), mx::concatenate(biases, 0), front.affine->group,
                     front.affine->bits};
    mx::eval(whole->affine->scales, whole->affine->biases);
  }
  int first = 0;
  for (Matrix* m : matrices) {
    const int end = first + m->out();
    const auto part = [&](const mx::array& all) {
      mx::array view = mx::slice(all, {first, 0}, {end, all.shape(1)});
      mx::eval(view);
      return view;
    };
    if (m->affine)
      m->affine = {part(whole->affine->scales), part(whole->affine->biases), m->affine->group,
                   m->affine->bits};
    m->weight = part(*whole->weight);
    m->whole = whole;
    m->first_row = first;
    first = end;
  }
}

mx::array rows(const Matrix& matrix, const mx::array& ids, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (matrix.packed) {
    return mx::array({ids.shape(0), matrix.in()}, mx::float32, std::make_shared<Rows>(stream, matrix.packed),
                     {mx::contiguous(mx::astype(ids, mx::int32, stream), false, stream)});
  }
  mx::array found = mx::take(*matrix.weight, ids, 0, stream);
  if (matrix.affine) {
    const Affine& a = *matrix.affine;
    found = mx::dequantize(found, mx::take(a.scales, ids, 0, stream), mx::take(a.biases, ids, 0, stream),
                           a.group, a.bits, "affine", std::nullopt, std::nullopt, stream);
  }
  return stream.device == mx::Device::cpu ? mx::astype(found, mx::float32, stream) : found;
}

mx::array row_squares(const Matrix& matrix) {
  constexpr int at_once = 512;
  const int out = matrix.out(), in = matrix.in();
  if (matrix.packed) {
    std::vector<float> sums(static_cast<std::size_t>(out));
    parallel((out + at_once - 1) / at_once, [&](std::int64_t part) {
      for (std::int64_t row = part * at_once; row < std::min<std::int64_t>(out, (part + 1) * at_once);
           ++row) {
        double sum = 0;
        float numbers[at_once];
        for (std::int64_t first = 0; first < in; first += at_once) {
          const std::int64_t count = std::min<std::int64_t>(at_once, in - first);
          unpack_row(*matrix.packed, row, first, count, numbers);
          for (std::int64_t i = 0; i < count; ++i) sum += double{numbers[i]} * double{numbers[i]};
        }
        sums[static_cast<std::size_t>(row)] = static_cast<float>(sum);
      }
    });
    return mx::array(sums.begin(), {out});
  }
  std::vector<mx::array> parts;
  for (int first = 0; first < out; first += at_once) {
    const mx::array some = rows(matrix, mx::arange(first, std::min(out, first + at_once), mx::int32));
    parts.push_back(mx::sum(mx::square(mx::astype(some, mx::float32)), 1));
    parts.back().eval();  // no more than these in memory
  }
  mx::array all = mx::concatenate(parts);
  all.eval();
  return all;
}

void unpack_panel(const PackedMatrix& matrix, std::int64_t index, float* to) {
  current_loops().unpack(matrix.shape(), matrix.panel(index), 0, matrix.shape().in, to);
}

void unpack_columns(const PackedMatrix& matrix, std::int64_t first_in, std::int64_t count, float* to) {
  const PanelShape& shape = matrix.shape();
  const PanelLoops& loops = current_loops();
  const std::int64_t here = std::min(count, shape.in - first_in);
  float columns[panel_outputs * panel_outputs], rows[panel_outputs * panel_outputs];
  for (std::int64_t p = 0; p < panels_of(shape); ++p) {
    const std::int64_t outputs = std::min<std::int64_t>(panel_outputs, shape.out - p * panel_outputs);
    loops.unpack(shape, matrix.panel(p), first_in, here, columns);
    std::fill(columns + here * panel_outputs, columns + count * panel_outputs, 0.0F);
    float* target = to + p * panel_outputs * count;
    loops.vectors.turn(columns, panel_outputs, count, outputs == panel_outputs ? target : rows, count);
    if (outputs < panel_outputs) std::copy_n(rows, outputs * count, target);
  }
}

void pack_columns(const void* weight, Format format, std::int64_t rows, std::int64_t width,
                  std::int64_t index, std::int64_t panels, float* to) {
  const std::int64_t apart = even(rows) * panel_outputs;
  for (std::int64_t r = 0; r < even(rows); ++r) {
    for (std::int64_t p = 0; p < panels; ++p) {
      float* target = to + p * apart + r * panel_outputs;
      const std::int64_t first = (index + p) * panel_outputs, at = r * width + first;
      const std::int64_t count = r < rows ? std::min<std::int64_t>(panel_outputs, width - first) : 0;
      if (format == Format::f32) {
        std::copy_n(static_cast<const float*>(weight) + at, count, target);
      } else {
        for (std::int64_t i = 0; i < count; ++i)
          target[i] = element(static_cast<const std::byte*>(weight), at + i, dense_type(format));
      }
      std::fill(target + count, target + panel_outputs, 0.0F);
    }
  }
}

void pack_column_pairs(const std::uint16_t* weight, std::int64_t rows, std::int64_t width, std::int64_t index,
                       std::uint16_t* panel) {
  const std::int64_t first = index * panel_outputs;
  const std::int64_t count = std::min<std::int64_t>(panel_outputs, width - first);
  std::fill_n(panel, even(rows) * panel_outputs, std::uint16_t{0});
  for (std::int64_t r = 0; r < rows; ++r) {
    std::uint16_t* to = panel + r / 2 * 2 * panel_outputs + r % 2;
    for (std::int64_t i = 0; i < count; ++i) to[2 * i] = weight[r * width + first + i];
  }
}

void turn_panel_pairs(const PackedMatrix& matrix, std::int64_t index, std::uint16_t* panel) {
  constexpr std::int64_t square = panel_outputs * panel_outputs;
  constexpr std::int64_t panels_ahead = 2;  // they lie far apart, where no prefetch of the hardware goes
  const PanelShape& shape = matrix.shape();
  const std::int64_t pairs =
      std::min<std::int64_t>(panel_outputs, even(shape.in) - index * panel_outputs) / 2;
  const auto inputs_of = [&](std::int64_t p) {
    return reinterpret_cast<const std::uint16_t*>(matrix.panel(p)) + index * square;
  };
  std::uint16_t from[square] = {}, to[square];
  for (std::int64_t p = 0; p < panels_of(shape); ++p) {
    const std::uint16_t* inputs = inputs_of(p);
    if (p + panels_ahead < panels_of(shape)) {
      for (std::int64_t i = 0; i < pairs * 2 * panel_outputs; i += 64 / std::int64_t{sizeof *inputs})
        __builtin_prefetch(inputs_of(p + panels_ahead) + i);
    }
    const std::int64_t numbers = std::min(square, even(shape.out) * panel_outputs - p * square);
    if (pairs * 2 < panel_outputs) {
      std::copy_n(inputs, pairs * 2 * panel_outputs, from);
      inputs = from;
    }
    std::uint16_t* target = panel + p * square;
    current_loops().vectors.turn_pairs(inputs, numbers == square ? target : to);
    if (numbers < square) std::copy_n(to, numbers, target);
  }
}

}  // namespace tandem::kernels
