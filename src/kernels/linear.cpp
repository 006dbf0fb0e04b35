#include "kernels/linear.h"

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/ops.h>
#include <mlx/primitives.h>

#include <stdexcept>

#include "kernels/linear_loops.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

LinearLoops choose_loops() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return linear_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {  // F16C is older than AVX2
    return linear_avx2;
  }
#endif
  return linear_portable;
}

WeightType weight_type(mx::Dtype dtype) {
  if (dtype == mx::float32) return WeightType::f32;
  if (dtype == mx::float16) return WeightType::f16;
  if (dtype == mx::bfloat16) return WeightType::bf16;
  throw std::invalid_argument("linear: the weight is neither float32, float16 nor bfloat16");
}

class Linear : public mx::Primitive {
 public:
  explicit Linear(mx::Stream stream) : mx::Primitive(stream) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const mx::array &x = inputs[0], &weight = inputs[1];
    mx::array& y = outputs[0];
    y.set_data(mx::allocator::malloc(y.nbytes()));
    const LinearArgs args{x.data<float>(),
                          weight.data<void>(),
                          y.data<float>(),
                          static_cast<std::int64_t>(x.size() / x.shape(-1)),
                          x.shape(-1),
                          weight.shape(0),
                          weight_type(weight.dtype())};
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.set_input_array(x);
    encoder.set_input_array(weight);
    encoder.set_output_array(y);
    static const LinearLoops loops = choose_loops();
    encoder.dispatch([args] { loops(args); });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::logic_error("kernels::Linear runs on CPU streams only");
  }

  const char* name() const override { return "TandemLinear"; }
  bool is_equivalent(const mx::Primitive&) const override { return true; }
};

}  // namespace

mx::array linear(const mx::array& x, const mx::array& weight, mx::StreamOrDevice s) {
  if (x.shape(-1) != weight.shape(1))
    throw std::invalid_argument("linear: x and weight disagree on the inputs");
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::gpu) {
    return mx::matmul(mx::astype(x, weight.dtype(), stream), mx::transpose(weight, stream), stream);
  }
  mx::Shape shape = x.shape();
  shape.back() = weight.shape(0);
  return mx::array(std::move(shape), mx::float32, std::make_shared<Linear>(stream),
                   {mx::contiguous(mx::astype(x, mx::float32, stream), false, stream),
                    mx::contiguous(weight, false, stream)});
}

}  // namespace tandem::kernels
