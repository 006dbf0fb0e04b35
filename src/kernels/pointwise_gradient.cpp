#include "kernels/pointwise_gradient.h"

#include <algorithm>

#include "kernels/cpu_primitive.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Inputs: x, weight, dy. Outputs: the gradient by x, then by the weight, if it is wanted.
class RmsNormGradient : public CpuPrimitive {
 public:
  RmsNormGradient(mx::Stream stream, float eps) : CpuPrimitive(stream), eps_(eps) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [x = inputs[0].data<float>(), weight = inputs[1].data<float>(), dy = inputs[2].data<float>(),
            dx = result_of(outputs[0]), dweight = outputs.size() > 1 ? result_of(outputs[1]) : nullptr,
            size = static_cast<std::int64_t>(inputs[1].size()),
            rows = static_cast<std::int64_t>(inputs[0].size() / inputs[1].size()), eps = eps_] {
      constexpr std::int64_t most_parts = 16;
      const std::int64_t parts = std::min(rows, most_parts);
      std::vector<float> sums(dweight ? parts * size : 0);
      parallel(parts, [&](std::int64_t part) {
        for (std::int64_t r = rows * part / parts; r < rows * (part + 1) / parts; ++r) {
          const std::int64_t at = r * size;
          current_loops().vectors.rms_norm_gradient(x + at, weight, dy + at, size, eps, dx + at,
                                                    dweight ? sums.data() + part * size : nullptr);
        }
      });
      if (!dweight) return;
      std::fill_n(dweight, size, 0.0F);
      for (std::int64_t part = 0; part < parts; ++part) {
        for (std::int64_t i = 0; i < size; ++i) dweight[i] += sums[part * size + i];
      }
    };
  }
  const char* name() const override { return "TandemRmsNormGradient"; }

 private:
  float eps_;
};

class SiluMultiplyGradient : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [gate = inputs[0].data<float>(), up = inputs[1].data<float>(), dy = inputs[2].data<float>(),
            dgate = result_of(outputs[0]), dup = result_of(outputs[1]),
            size = static_cast<std::int64_t>(inputs[0].shape(-1)),
            rows = static_cast<std::int64_t>(inputs[0].size() / inputs[0].shape(-1))] {
      parallel_rows(rows, size, [&](std::int64_t r) {
        const std::int64_t at = r * size;
        current_loops().vectors.silu_multiply_gradient(gate + at, up + at, dy + at, size, dgate + at,
                                                       dup + at);
      });
    };
  }
  const char* name() const override { return "TandemSiluMultiplyGradient"; }
};

}  // namespace

NormGradients rms_norm_gradients(const mx::array& x, const mx::array& weight, const mx::array& dy, float eps,
                                 bool by_weight, mx::Stream s) {
  std::vector<mx::Shape> shapes{x.shape()};
  if (by_weight) shapes.push_back(weight.shape());
  const auto found = mx::array::make_arrays(
      shapes, std::vector(shapes.size(), mx::float32), std::make_shared<RmsNormGradient>(s, eps),
      {as_float_rows(x, s), as_float_rows(weight, s), as_float_rows(dy, s)});
  return {found[0], by_weight ? std::optional(found[1]) : std::nullopt};
}

std::vector<mx::array> silu_multiply_gradients(const mx::array& gate, const mx::array& up,
                                               const mx::array& dy, mx::Stream s) {
  return mx::array::make_arrays({gate.shape(), up.shape()}, {mx::float32, mx::float32},
                                std::make_shared<SiluMultiplyGradient>(s),
                                {as_float_rows(gate, s), as_float_rows(up, s), as_float_rows(dy, s)});
}

}  // namespace tandem::kernels
