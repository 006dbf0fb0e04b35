#include "kernels/cpu_primitive.h"

#include <gtest/gtest.h>
#include <mlx/memory.h>
#include <mlx/ops.h>

#include "kernels/pointwise.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

TEST(CpuPrimitive, LargeResultsGetMemoryShortlyBeforeTheyAreComputed) {
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

}  // namespace
}  // namespace tandem::kernels
