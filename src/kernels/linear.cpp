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

// y = x · W, the other way through a packed matrix.
class LinearTransposed : public CpuPrimitive {
 public:
  LinearTransposed(mx::Stream stream, std::shared_ptr<const PackedMatrix> matrix)
      : CpuPrimitive(stream), matrix_(std::move(matrix)) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [matrix = matrix_, x = inputs[0].data<float>(), to = result_of(outputs[0]),
            rows = static_cast<std::int64_t>(inputs[0].size() / inputs[0].shape(-1))] {
      multiply_transposed(*matrix, x, rows, to);
    };
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

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    std::vector<Operand> operands;
    std::vector<float*> results;
    auto dense = inputs.begin() + 1;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      results.push_back(result_of(outputs[i]));
      if (packed_[i]) {
        operands.push_back(packed_operand(*packed_[i]));
      } else {
        operands.push_back(dense_operand(dense_format(dense->dtype()), dense->shape(0), dense->shape(1),
                                         dense->data<void>()));
        ++dense;
      }
    }
    return [operands = std::move(operands), results = std::move(results), packed = packed_,
            x = inputs[0].data<float>(),
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
  std::vector<std::shared_ptr<const PackedMatrix>> packed;
  for (const auto& matrix : matrices) {
    if (stream.device == mx::Device::gpu) {
      results.push_back(linear_by_mlx(x, matrix, stream));
      continue;
    }
    if (matrix.affine)
      throw std::invalid_argument("linear: a quantised matrix must be packed for a CPU stream");
    if (inputs.empty()) inputs.push_back(as_float_rows(x, stream));
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
