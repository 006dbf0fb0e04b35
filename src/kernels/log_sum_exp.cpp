#include "kernels/log_sum_exp.h"

#include <mlx/ops.h>

#include <cmath>
#include <limits>

#include "kernels/cpu_primitive.h"
#include "kernels/products.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Inputs: scores, columns, log_sum, the gradients by log_sum and by chosen. Output: the gradient by scores.
class LogSumExpGradient : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [x = inputs[0].data<float>(), columns = inputs[1].data<std::int32_t>(),
            sums = inputs[2].data<float>(), by_sum = inputs[3].data<float>(),
            by_chosen = inputs[4].data<float>(), y = result_of(outputs[0]),
            rows = std::int64_t{inputs[0].shape(0)}, size = std::int64_t{inputs[0].shape(1)}] {
      parallel_rows(rows, size, [&](std::int64_t r) {
        current_loops().vectors.scaled_power(x + r * size, sums[r], by_sum[r], size, y + r * size);
        if (columns[r] >= 0 && columns[r] < size) y[r * size + columns[r]] += by_chosen[r];
      });
    };
  }
  const char* name() const override { return "TandemLogSumExpGradient"; }
};

class LogSumExp : public CpuPrimitive {
 public:
  using CpuPrimitive::CpuPrimitive;

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [x = inputs[0].data<float>(), columns = inputs[1].data<std::int32_t>(),
            sums = result_of(outputs[0]), chosen = result_of(outputs[1]),
            rows = std::int64_t{inputs[0].shape(0)}, size = std::int64_t{inputs[0].shape(1)}] {
      parallel_rows(rows, size, [&](std::int64_t r) {
        chosen[r] = 0;
        sums[r] = -std::numeric_limits<float>::infinity();
        if (size == 0) return;
        const Softmax found = current_loops().vectors.log_sum(x + r * size, size);
        sums[r] = found.top + std::log(found.sum);
        if (columns[r] >= 0 && columns[r] < size) chosen[r] = x[r * size + columns[r]];
      });
    };
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override {
    const mx::Stream s = stream();
    std::vector<mx::array> wanted;
    for (const int argnum : argnums) {
      wanted.push_back(
          argnum == 0 ? mx::array(primals[0].shape(), mx::float32, std::make_shared<LogSumExpGradient>(s),
                                  {primals[0], primals[1], outputs[0], as_float_rows(cotangents[0], s),
                                   as_float_rows(cotangents[1], s)})
                      : mx::zeros_like(primals[argnum], s));
    }
    return wanted;
  }
  const char* name() const override { return "TandemLogSumExp"; }
};

RowScores by_mlx(const mx::array& scores, const mx::array& columns, mx::Stream s) {
  const mx::array exact = mx::astype(scores, mx::float32, s);
  const mx::array here = mx::logical_and(mx::greater_equal(columns, mx::array(0), s),
                                         mx::less(columns, mx::array(scores.shape(1)), s), s);
  const mx::array column = mx::expand_dims(mx::where(here, columns, mx::array(0), s), 1, s);
  const mx::array own = mx::squeeze(mx::take_along_axis(exact, column, 1, s), 1, s);
  return {mx::logsumexp(exact, 1, false, s), mx::where(here, own, mx::array(0.0F), s)};
}

}  // namespace

RowScores log_sum_exp(const mx::array& scores, const mx::array& columns, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::gpu) return by_mlx(scores, columns, stream);
  const mx::Shape rows{scores.shape(0)};
  const auto found = mx::array::make_arrays(
      {rows, rows}, {mx::float32, mx::float32}, std::make_shared<LogSumExp>(stream),
      {as_float_rows(scores, stream), row_major(mx::astype(columns, mx::int32, stream), stream)});
  return {found[0], found[1]};
}

}  // namespace tandem::kernels
