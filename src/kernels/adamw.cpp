#include "kernels/adamw.h"

#include <mlx/compile.h>
#include <mlx/ops.h>

#include <algorithm>
#include <functional>
#include <map>

#include "kernels/cpu_primitive.h"
#include "kernels/products.h"
#include "kernels/threads.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// Inputs: value, mean, square, gradient. Outputs: the first three anew.
class Adamw : public CpuPrimitive {
 public:
  Adamw(mx::Stream stream, const AdamwStep& step) : CpuPrimitive(stream), step_(step) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const AdamwNumbers<const float> before{inputs[0].data<float>(), inputs[1].data<float>(),
                                           inputs[2].data<float>()};
    const AdamwNumbers<float> after{result_of(outputs[0]), result_of(outputs[1]), result_of(outputs[2])};
    return [before, after, gradient = inputs[3].data<float>(), step = step_,
            size = static_cast<std::int64_t>(inputs[0].size())] {
      constexpr std::int64_t at_once = 16 << 10;
      parallel((size + at_once - 1) / at_once, [&](std::int64_t part) {
        const std::int64_t first = part * at_once;
        current_loops().vectors.adamw(before.from(first), gradient + first, step,
                                      std::min(at_once, size - first), after.from(first));
      });
    };
  }
  const char* name() const override { return "TandemAdamw"; }

 private:
  AdamwStep step_;
};

// Inputs: value, codes and largest means, codes and largest roots, gradient. Outputs: all but the last anew.
class AdamwIn8Bit : public CpuPrimitive {
 public:
  AdamwIn8Bit(mx::Stream stream, const AdamwStep& step, std::uint32_t key)
      : CpuPrimitive(stream), step_(step), key_(key) {}

  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    const AdamwBlocksBefore before{inputs[0].data<float>(), inputs[1].data<std::int8_t>(),
                                   inputs[2].data<float>(), inputs[3].data<std::uint8_t>(),
                                   inputs[4].data<float>()};
    const AdamwBlocksAfter after{result_of(outputs[0]), result_of<std::int8_t>(outputs[1]),
                                 result_of(outputs[2]), result_of<std::uint8_t>(outputs[3]),
                                 result_of(outputs[4])};
    return [before, after, gradient = inputs[5].data<float>(), step = step_, key = key_,
            size = static_cast<std::int64_t>(inputs[0].size())] {
      constexpr std::int64_t at_once = 64 * optimizer_block;
      parallel((size + at_once - 1) / at_once, [&](std::int64_t part) {
        const std::int64_t first = part * at_once;
        current_loops().vectors.adamw_in_8_bit(before, gradient, step, key, first,
                                               std::min(size, first + at_once), after);
      });
    };
  }
  const char* name() const override { return "TandemAdamwIn8Bit"; }

 private:
  AdamwStep step_;
  std::uint32_t key_;
};

// Inputs: those of Adamw, then the step's numbers, which change and so are no constants of a compiled kernel.
std::vector<mx::array> by_mlx(const std::vector<mx::array>& in, mx::Stream s) {
  const auto times = [s](const mx::array& a, const mx::array& b) { return mx::multiply(a, b, s); };
  const auto plus = [s](const mx::array& a, const mx::array& b) { return mx::add(a, b, s); };
  const auto rest = [s](const mx::array& x) { return mx::subtract(mx::array(1.0F), x, s); };
  const mx::array &beta1 = in[4], &beta2 = in[5], &eps = in[6], &keep = in[7], &rate = in[8], &scale = in[9];
  const mx::array mean = plus(times(in[1], beta1), times(in[3], rest(beta1)));
  const mx::array square = plus(times(in[2], beta2), times(mx::square(in[3], s), rest(beta2)));
  const mx::array size = plus(mx::sqrt(times(square, scale), s), eps);
  return {mx::subtract(times(in[0], keep), mx::divide(times(mean, rate), size, s), s), mean, square};
}

}  // namespace

AdamwState adamw(const AdamwState& before, const mx::array& gradient, const AdamwStep& step,
                 mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  std::vector<mx::array> inputs{before.value, before.mean, before.square, gradient};
  if (stream.device == mx::Device::gpu) {
    using Arrays = std::vector<mx::array>;
    thread_local std::map<int, std::function<Arrays(const Arrays&)>> compiled;  // by stream
    auto& one_pass = compiled[stream.index];
    if (!one_pass)
      one_pass = mx::compile([stream](const Arrays& in) { return by_mlx(in, stream); }, /*shapeless=*/true);
    for (const float number : {step.beta1, step.beta2, step.eps, step.keep, step.rate, step.square_scale})
      inputs.emplace_back(number);
    const auto found = one_pass(inputs);
    return {found[0], found[1], found[2]};
  }
  for (auto& input : inputs) input = as_float_rows(input, stream);
  const std::vector<mx::Shape> shapes(3, before.value.shape());
  const auto found = mx::array::make_arrays(shapes, {mx::float32, mx::float32, mx::float32},
                                            std::make_shared<Adamw>(stream, step), inputs);
  return {found[0], found[1], found[2]};
}

AdamwStateIn8Bit adamw(const AdamwStateIn8Bit& before, const mx::array& gradient, const AdamwStep& step,
                       std::uint32_t key, mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  const mx::Shape& shape = before.value.shape();
  if (stream.device == mx::Device::gpu) {
    const mx::array mean = unpack_signed(before.mean, shape, stream),
                    root = unpack_unsigned(before.root, shape, stream);
    const auto after = adamw({before.value, mean, mx::square(root, stream)}, gradient, step, stream);
    const mx::array noise = rounding_noise(before.value.size(), key, stream);
    return {after.value, pack_signed(after.mean, noise, stream),
            pack_unsigned(mx::sqrt(after.square, stream), noise, stream)};
  }
  std::vector<mx::array> inputs{as_float_rows(before.value, stream)};
  for (const auto& kept : {before.mean, before.root}) {
    inputs.push_back(row_major(kept.codes, stream));
    inputs.push_back(row_major(kept.largest, stream));
  }
  inputs.push_back(as_float_rows(gradient, stream));
  const mx::Shape &codes = before.mean.codes.shape(), &blocks = before.mean.largest.shape();
  const auto found = mx::array::make_arrays({shape, codes, blocks, codes, blocks},
                                            {mx::float32, mx::int8, mx::float32, mx::uint8, mx::float32},
                                            std::make_shared<AdamwIn8Bit>(stream, step, key), inputs);
  return {found[0], {found[1], found[2]}, {found[3], found[4]}};
}

}  // namespace tandem::kernels
