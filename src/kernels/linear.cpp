#include "kernels/linear.h"

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/ops.h>
#include <mlx/primitives.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/cpu_primitive.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

const PanelLoops*& chosen_loops() {
  static const PanelLoops* loops = find_loops();
  return loops;
}

bool& float32_rows() {
  static bool wanted = false;
  return wanted;
}

// The operand of one product: packed, or row-major dense memory that is packed panel by panel on the way.
struct Operand {
  PanelShape shape;
  const PackedMatrix* packed;
  const void* dense;
  bool unpack = false;  // a quantised matrix that is multiplied as float32
};

Operand packed_operand(const PackedMatrix& matrix) {
  const PanelShape& shape = matrix.shape();
  if (!float32_rows() || !is_quantised(shape.format)) return {shape, &matrix, nullptr};
  return {{shape.out, shape.in, Format::f32, ScaleType::f32, 0}, &matrix, nullptr, true};
}

struct Prepared {
  Activation activation;
  int group;
  std::vector<std::byte> bytes;
};

// Scratch of the stream's thread, kept between calls: a fresh buffer would be paged in anew for every
// product.
std::vector<Prepared>& scratch() {
  thread_local std::vector<Prepared> prepared;
  return prepared;
}

const std::byte* prepare_rows(const PanelLoops& loops, const float* x, std::int64_t rows,
                              const PanelShape& shape, std::vector<const Prepared*>& done) {
  const Activation activation = activation_of(shape.format, loops);
  const int group = activation == Activation::int8 ? shape.group : 0;
  for (const auto* prepared : done) {
    if (prepared->activation == activation && prepared->group == group) return prepared->bytes.data();
  }
  auto& all = scratch();
  auto found = std::find_if(all.begin(), all.end(),
                            [&](auto& p) { return p.activation == activation && p.group == group; });
  if (found == all.end()) found = all.insert(all.end(), Prepared{activation, group, {}});
  const auto bytes = static_cast<std::size_t>(rows * prepared_bytes(activation, shape.in, group));
  if (found->bytes.size() < bytes) found->bytes.resize(bytes);
  const Prepare args{x, shape.in, rows, shape.in, activation, group, found->bytes.data()};
  const std::int64_t height = tile_rows(activation, loops), tiles = (rows + height - 1) / height;
  constexpr std::int64_t tiles_at_once = 4;
  parallel((tiles + tiles_at_once - 1) / tiles_at_once, [&](std::int64_t part) {
    loops.prepare(args, part * tiles_at_once, std::min(tiles, (part + 1) * tiles_at_once));
  });
  done.push_back(&*found);
  return found->bytes.data();
}

void multiply_panels(const PanelLoops& loops, const Operand& w, const std::byte* prepared, float* y,
                     std::int64_t rows) {
  const std::int64_t panels = panels_of(w.shape);
  // Few enough parts that each is a long stream, and enough of them that threads of unequal speed end
  // together.
  const std::int64_t parts = threads() == 1 ? 1 : std::min<std::int64_t>(panels, threads() * 8);
  parallel(parts, [&](std::int64_t part) {
    const std::int64_t first = panels * part / parts, end = panels * (part + 1) / parts;
    if (w.packed && !w.unpack) {
      loops.multiply({w.shape, w.packed->panel(0), panel_bytes(w.shape), prepared, y, w.shape.out, rows},
                     first, end);
      return;
    }
    std::vector<std::byte> panel(panel_bytes(w.shape));
    for (std::int64_t p = first; p < end; ++p) {
      if (w.unpack) {
        unpack_panel(*w.packed, p, reinterpret_cast<float*>(panel.data()));
      } else {
        pack_panel(w.dense, w.shape, p, panel.data());
      }
      PanelShape one = w.shape;
      one.out = std::min<std::int64_t>(panel_outputs, w.shape.out - p * panel_outputs);
      loops.multiply(
          {one, panel.data(), panel_bytes(one), prepared, y + p * panel_outputs, w.shape.out, rows}, 0, 1);
    }
  });
}

void run_linear(const float* x, std::int64_t rows, const std::vector<Operand>& operands,
                const std::vector<float*>& results) {
  const PanelLoops& loops = current_loops();
  scratch().reserve(8);  // pointers into it stay good: there are fewer kinds than that
  std::vector<const Prepared*> done;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    const std::byte* prepared = prepare_rows(loops, x, rows, operands[i].shape, done);
    multiply_panels(loops, operands[i], prepared, results[i], rows);
  }
}

// x · W of packed matrices: their gradient by the input. 32 inputs of the matrix at a time become a panel of
// Wᵀ.
void run_transposed(const float* x, std::int64_t rows, const PackedMatrix& w, float* y) {
  const PanelLoops& loops = current_loops();
  const PanelShape whole{w.shape().in, w.shape().out, Format::f32, ScaleType::f32, 0};
  std::vector<const Prepared*> done;
  scratch().reserve(8);
  const std::byte* prepared = prepare_rows(loops, x, rows, whole, done);
  parallel(panels_of(whole), [&](std::int64_t p) {
    std::vector<std::byte> panel(panel_bytes(whole));
    unpack_columns(w, p * panel_outputs, panel_outputs, reinterpret_cast<float*>(panel.data()));
    PanelShape one = whole;
    one.out = std::min<std::int64_t>(panel_outputs, whole.out - p * panel_outputs);
    loops.multiply({one, panel.data(), panel_bytes(one), prepared, y + p * panel_outputs, whole.out, rows}, 0,
                   1);
  });
}

// y = x · W, the other way through a packed matrix.
class LinearTransposed : public CpuPrimitive {
 public:
  LinearTransposed(mx::Stream stream, std::shared_ptr<const PackedMatrix> matrix)
      : CpuPrimitive(stream), matrix_(std::move(matrix)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    mx::array& y = outputs[0];
    y.set_data(mx::allocator::malloc(y.nbytes()));
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.set_input_array(inputs[0]);
    encoder.set_output_array(y);
    encoder.dispatch([matrix = matrix_, x = inputs[0].data<float>(), to = y.data<float>(),
                      rows = static_cast<std::int64_t>(inputs[0].size() / inputs[0].shape(-1))] {
      run_transposed(x, rows, *matrix, to);
    });
  }
  const char* name() const override { return "TandemLinearTransposed"; }

 private:
  std::shared_ptr<const PackedMatrix> matrix_;
};

mx::array as_rows(const mx::array& x, mx::Stream stream) { return mx::reshape(x, {-1, x.shape(-1)}, stream); }

class Linear : public CpuPrimitive {
 public:
  // Where packed[i] is none, the matrix is an input.
  Linear(mx::Stream stream, std::vector<std::shared_ptr<const PackedMatrix>> packed)
      : CpuPrimitive(stream), packed_(std::move(packed)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (const auto& input : inputs) encoder.set_input_array(input);
    std::vector<Operand> operands;
    std::vector<float*> results;
    auto dense = inputs.begin() + 1;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
      encoder.set_output_array(outputs[i]);
      results.push_back(outputs[i].data<float>());
      if (packed_[i]) {
        operands.push_back(packed_operand(*packed_[i]));
      } else {
        const Matrix matrix{*dense, std::nullopt, nullptr};
        operands.push_back({dense_shape(matrix), nullptr, dense->data<void>()});
        ++dense;
      }
    }
    encoder.dispatch([operands = std::move(operands), results = std::move(results), packed = packed_,
                      x = inputs[0].data<float>(),
                      rows = static_cast<std::int64_t>(inputs[0].size() / inputs[0].shape(-1))] {
      run_linear(x, rows, operands, results);
    });
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    const mx::Stream s = stream();
    std::vector<mx::array> gradients;
    for (const int argnum : argnums) {
      gradients.push_back(argnum == 0 ? by_x(primals, cotangents, s)
                                      : by_weight(primals, cotangents, argnum, s));
    }
    return gradients;
  }

  const char* name() const override { return "TandemLinear"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    return packed_ == static_cast<const Linear&>(other).packed_;
  }

 private:
  static PanelShape dense_shape(const Matrix& matrix) {
    const auto dtype = matrix.weight->dtype();
    const Format format = dtype == mx::float32   ? Format::f32
                          : dtype == mx::float16 ? Format::f16
                                                 : Format::bf16;
    return {matrix.out(), matrix.in(), format, ScaleType::f32, 0};
  }

  mx::array by_x(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                 mx::Stream s) const {
    std::optional<mx::array> sum;
    int dense = 1;
    for (std::size_t i = 0; i < packed_.size(); ++i) {
      const mx::array dy = mx::contiguous(cotangents[i], false, s);
      const mx::array part =
          packed_[i] ? mx::array(primals[0].shape(), mx::float32,
                                 std::make_shared<LinearTransposed>(s, packed_[i]), {dy})
                     : linear(dy, Matrix{mx::transpose(primals[dense++], s), std::nullopt, nullptr}, s);
      sum = sum ? mx::add(*sum, part, s) : part;
    }
    return *sum;
  }

  mx::array by_weight(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                      int argnum, mx::Stream s) const {
    int dense = 0;
    for (std::size_t i = 0; i < packed_.size(); ++i) {
      if (packed_[i] || ++dense != argnum) continue;
      const mx::array dy = mx::transpose(as_rows(cotangents[i], s), s);  // [out, rows]
      const mx::array x = mx::transpose(as_rows(primals[0], s), s);      // [in, rows]
      return mx::astype(linear(dy, Matrix{x, std::nullopt, nullptr}, s), primals[argnum].dtype(), s);
    }
    throw std::logic_error("TandemLinear: no such input");
  }

  std::vector<std::shared_ptr<const PackedMatrix>> packed_;
};

mx::array linear_by_mlx(const mx::array& x, const Matrix& m, mx::Stream s) {
  if (!m.affine) return mx::matmul(mx::astype(x, m.weight->dtype(), s), mx::transpose(*m.weight, s), s);
  const Affine& a = *m.affine;
  return mx::quantized_matmul(mx::astype(x, a.scales.dtype(), s), *m.weight, a.scales, a.biases, true,
                              a.group, a.bits, "affine", s);
}

}  // namespace

const PanelLoops& current_loops() {
  const PanelLoops* loops = chosen_loops();
  return float32_rows() && loops->bf16_pairs ? *find_loops("avx512") : *loops;
}

std::vector<mx::array> linear(const mx::array& x, const std::vector<Matrix>& matrices, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  std::vector<mx::array> inputs, results;
  std::vector<mx::Shape> shapes;
  std::vector<std::shared_ptr<const PackedMatrix>> packed;
  for (const auto& matrix : matrices) {
    if (x.shape(-1) != matrix.in())
      throw std::invalid_argument("linear: x and weight disagree on the inputs");
    if (stream.device == mx::Device::gpu) {
      results.push_back(linear_by_mlx(x, matrix, stream));
      continue;
    }
    if (matrix.affine)
      throw std::invalid_argument("linear: a quantised matrix must be packed for a CPU stream");
    if (inputs.empty()) inputs.push_back(mx::contiguous(mx::astype(x, mx::float32, stream), false, stream));
    if (!matrix.packed) inputs.push_back(mx::contiguous(*matrix.weight, false, stream));
    packed.push_back(matrix.packed);
    mx::Shape shape = x.shape();
    shape.back() = matrix.out();
    shapes.push_back(std::move(shape));
  }
  if (stream.device == mx::Device::gpu) return results;
  const std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
  return mx::array::make_arrays(std::move(shapes), dtypes,
                                std::make_shared<Linear>(stream, std::move(packed)), inputs);
}

mx::array linear(const mx::array& x, const Matrix& matrix, mx::StreamOrDevice s) {
  return linear(x, std::vector<Matrix>{matrix}, s).front();
}

void use_activations(Activations activations) { float32_rows() = activations == Activations::float32; }

void use_loops(const char* name) {
  const PanelLoops* loops = find_loops(name);
  if (!loops) throw std::invalid_argument(std::string("this processor does not have ") + name);
  chosen_loops() = loops;
}

}  // namespace tandem::kernels
