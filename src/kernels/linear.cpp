#include "kernels/linear.h"

#include <mlx/ops.h>
#include <mlx/primitives.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/cpu_primitive.h"
#include "kernels/cuda_kernel.h"
#include "kernels/cuda_products.h"
#include "kernels/pointwise.h"
#include "kernels/products.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

using Packed = std::vector<std::shared_ptr<const PackedMatrix>>;

// Of packed matrices and, in the places of those that are none, of dense ones.
std::vector<Operand> operands_of(const Packed& packed, std::vector<mx::array>::const_iterator dense) {
  std::vector<Operand> operands;
  for (const auto& matrix : packed) {
    if (matrix) {
      operands.push_back(packed_operand(*matrix));
    } else {
      operands.push_back(
          dense_operand(dense_format(dense->dtype()), dense->shape(0), dense->shape(1), dense->data<void>()));
      ++dense;
    }
  }
  return operands;
}

// The gradient by x: the sum over the matrices of dy · W. Inputs: a dy [..., out] of each, then those
// matrices that are dense.
class LinearByX : public CpuPrimitive {
 public:
  LinearByX(mx::Stream stream, Packed packed) : CpuPrimitive(stream), packed_(std::move(packed)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const auto count = static_cast<std::ptrdiff_t>(packed_.size());
    std::vector<const float*> given;
    for (std::ptrdiff_t i = 0; i < count; ++i) given.push_back(inputs[i].data<float>());
    return [operands = operands_of(packed_, inputs.begin() + count), packed = packed_,
            given = std::move(given), to = result_of(outputs[0]),
            rows = static_cast<std::int64_t>(outputs[0].size() / outputs[0].shape(-1))] {
      for (std::size_t i = 0; i < operands.size(); ++i) {
        PreparedRows prepared(given[i], rows);
        multiply(turned(operands[i]), prepared, to, /*adds=*/i > 0);
      }
    };
  }
  const char* name() const override { return "TandemLinearByX"; }

 private:
  Packed packed_;
};

// The gradient by the weight, dyᵀ · x, of dy [..., out] and x [..., in].
class LinearByWeight : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [dy = inputs[0].data<float>(), x = inputs[1].data<float>(), out = outputs[0].shape(0),
            in = outputs[0].shape(1), to = result_of(outputs[0]),
            rows = static_cast<std::int64_t>(inputs[1].size() / inputs[1].shape(-1))] {
      multiply_outer(dy, out, x, in, rows, to);
    };
  }
  const char* name() const override { return "TandemLinearByWeight"; }
};

class Linear : public CpuPrimitive {
 public:
  // Where packed[i] is none, the matrix is an input.
  Linear(mx::Stream stream, Packed packed) : CpuPrimitive(stream), packed_(std::move(packed)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    std::vector<float*> results;
    for (const auto& output : outputs) results.push_back(result_of(output));
    return [operands = operands_of(packed_, inputs.begin() + 1), results = std::move(results),
            packed = packed_, x = inputs[0].data<float>(),
            rows = static_cast<std::int64_t>(inputs[0].size() / inputs[0].shape(-1))] {
      PreparedRows prepared(x, rows);
      for (std::size_t i = 0; i < operands.size(); ++i) multiply(operands[i], prepared, results[i]);
    };
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

 private:
  mx::array by_x(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                 mx::Stream s) const {
    std::vector<mx::array> inputs;
    for (const auto& dy : cotangents) inputs.push_back(as_float_rows(dy, s));
    inputs.insert(inputs.end(), primals.begin() + 1, primals.end());
    return mx::array(primals[0].shape(), mx::float32, std::make_shared<LinearByX>(s, packed_), inputs);
  }

  mx::array by_weight(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                      int argnum, mx::Stream s) const {
    int dense = 0;
    for (std::size_t i = 0; i < packed_.size(); ++i) {
      if (packed_[i] || ++dense != argnum) continue;
      const mx::array gradient(primals[argnum].shape(), mx::float32, std::make_shared<LinearByWeight>(s),
                               {as_float_rows(cotangents[i], s), as_float_rows(primals[0], s)});
      return mx::astype(gradient, primals[argnum].dtype(), s);
    }
    throw std::logic_error("TandemLinear: no such input");
  }

  Packed packed_;
};

mx::array linear_by_mlx(const mx::array& x, const Matrix& m, mx::Stream s) {
  if (!m.affine) return mx::matmul(mx::astype(x, m.weight->dtype(), s), mx::transpose(*m.weight, s), s);
  const Affine& a = *m.affine;
  if (is_cuda(s)) {
    if (auto y = linear_on_cuda(x, m, s)) return *y;
    const mx::array whole = mx::dequantize(*m.weight, a.scales, a.biases, a.group, a.bits, "affine",
                                           std::nullopt, std::nullopt, s);
    return mx::matmul(mx::astype(x, a.scales.dtype(), s), mx::transpose(whole, s), s);
  }
  return mx::quantized_matmul(mx::astype(x, a.scales.dtype(), s), *m.weight, a.scales, a.biases, true,
                              a.group, a.bits, "affine", s);
}

// Whether they are all of one matrix's rows, in their order.
bool are_joined(const std::vector<Matrix>& matrices) {
  int rows = 0;
  for (const auto& matrix : matrices) {
    if (!matrix.whole || matrix.whole != matrices.front().whole || matrix.first_row != rows) return false;
    rows += matrix.out();
  }
  return rows == matrices.front().whole->out();
}

std::vector<mx::array> linear_of_joined(const mx::array& x, const std::vector<Matrix>& matrices,
                                        mx::Stream s) {
  const mx::array y = linear_by_mlx(x, *matrices.front().whole, s);
  mx::Shape ends;
  for (const auto& matrix : matrices) ends.push_back(matrix.first_row + matrix.out());
  ends.pop_back();
  return mx::split(y, ends, -1, s);
}

}  // namespace

std::vector<mx::array> linear(const mx::array& x, const std::vector<Matrix>& matrices, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  for (const auto& matrix : matrices) {
    if (x.shape(-1) != matrix.in())
      throw std::invalid_argument("linear: x and weight disagree on the inputs");
  }
  if (stream.device == mx::Device::gpu && are_joined(matrices)) return linear_of_joined(x, matrices, stream);
  std::vector<mx::array> inputs, results;
  std::vector<mx::Shape> shapes;
  Packed packed;
  for (const auto& matrix : matrices) {
    if (stream.device == mx::Device::gpu) {
      results.push_back(linear_by_mlx(x, matrix, stream));
      continue;
    }
    if (matrix.affine)
      throw std::invalid_argument("linear: a quantised matrix must be packed for a CPU stream");
    if (inputs.empty()) inputs.push_back(as_float_rows(x, stream));
    if (!matrix.packed) inputs.push_back(row_major(*matrix.weight, stream));
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

mx::array add_linear(const mx::array& y, const mx::array& x, const Matrix& matrix, float scale,
                     mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::gpu && !matrix.affine) {
    return mx::addmm(y, mx::astype(x, y.dtype(), stream),
                     mx::transpose(mx::astype(*matrix.weight, y.dtype(), stream), stream), scale, 1.0F,
                     stream);
  }
  return kernels::add(y, linear(mx::multiply(x, mx::array(scale, x.dtype()), stream), matrix, stream),
                      stream);
}

}  // namespace tandem::kernels
