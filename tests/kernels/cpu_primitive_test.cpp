#include "kernels/cpu_primitive.h"

#include <gtest/gtest.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/memory.h>
#include <mlx/ops.h>

#include <stdexcept>

#include "kernels/matrix.h"
#include "kernels/pointwise.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

TEST(CpuPrimitive, LargeResultsGetMemoryShortlyBeforeTheyAreComputed) {
  if (!on_cpu()) GTEST_SKIP() << "beside a GPU nothing waits";
  constexpr int operations = 64, rows = 1024, width = 1024;
  const mx::array one = mx::ones({rows, width}, mx::float32, mx::Device::cpu);
  mx::eval(one);
  mx::array sum = one;
  for (int i = 0; i < operations; ++i) sum = kernels::add(sum, one, mx::Device::cpu);
  mx::reset_peak_memory();
  mx::eval(sum);
  // What is added to, two that wait, and those that are just being freed; without a bound it would be all.
  EXPECT_LT(mx::get_peak_memory(), 8 * one.nbytes());
  EXPECT_EQ(mx::min(sum, mx::Device::cpu).item<float>(), operations + 1);
}

// As a sum over ranks does that a peer is missing from.
class Fails : public mx::Primitive {
 public:
  using mx::Primitive::Primitive;
  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>& outputs) override {
    allocate(outputs);
    mx::cpu::get_command_encoder(stream()).dispatch([] { throw std::runtime_error("no peer"); });
  }
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {}
  const char* name() const override { return "Fails"; }
};

TEST(CpuPrimitive, NothingWaitsForWhatAnErrorLeftOut) {
  const mx::Stream stream = mx::new_stream(mx::Device::cpu);
  const mx::Shape shape{1024, 1024};
  const auto sums = [&](mx::array x) {
    for (int i = 0; i < 30; ++i) x = kernels::add(x, x, stream);
    return x;
  };
  for (int i = 0; i < 4; ++i) {
    try {
      mx::eval(sums(mx::array(shape, mx::float32, std::make_shared<Fails>(stream),
                              {mx::ones(shape, mx::float32, stream)})));
    } catch (const std::runtime_error&) {
    }
  }
  const mx::array sum = sums(mx::zeros(shape, mx::float32, stream));
  for (int tries = 0; tries < 8; ++tries) {  // errors may come a few times
    try {
      mx::eval(sum);
      break;
    } catch (const std::runtime_error&) {
    }
  }
  EXPECT_EQ(mx::max(sum, stream).item<float>(), 0);
}

}  // namespace
}  // namespace tandem::kernels
